// A page as its author would write it: compiled by test/run, never run.

import { connect, StreamClosed, type Gap, type PulseEvent, type State, type Stream } from "../pulsestream.js";

const events: PulseEvent[] = [];
const stream: Stream = connect({
  url: "https://live.example",
  getToken: async () => (await fetch("/my/token")).json(),
  deviceId: ["73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a"],
  eventType: "temperature",
  mode: "window",
  windowMs: 100,
  cursor: localStorage.getItem("cursor"),
  transports: ["sse", "poll"],
  onEvent: (event) => events.push(event),
  onEvents: (batch, cursor) => localStorage.setItem("cursor", `${cursor} ${batch.length}`),
  onGap: (gap: Gap) => console.log(gap.reason, gap.missed ?? "some"),
  onState: (state: State) => console.log(words(state)),
});

function words(state: State): string {
  switch (state.name) {
    case "open":
      return `${state.transport} ${state.recovered ?? "new"}`;
    case "waiting":
      return `${state.retryInMs} ms: ${state.reason.code}`;
    case "closed":
      return state.reason.detail ?? state.reason.code;
    case "connecting":
    case "paused":
      return state.name;
  }
}

try {
  for await (const { events, gap, cursor } of stream.batches()) {
    if (gap) console.log(gap.reason, cursor);
    else console.log(events.map(({ value, metadata }) => [value.toFixed(1), metadata?.["unit"]]));
  }
} catch (error) {
  if (error instanceof StreamClosed) console.log(error.code);
}

connect({ mode: "latest", windowMs: 500 });
// @ts-expect-error: there is no such mode.
connect({ mode: "newest" });
// @ts-expect-error: there is no such transport.
connect({ transports: ["pigeon"] });
// @ts-expect-error: events are not the page's to change.
connect({ onEvent: (event) => (event.value = 1) });
