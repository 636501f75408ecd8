/** Live events of PulseStream. */

/** One measurement of a device. Members may be added. */
export interface PulseEvent {
  readonly id: string;
  readonly deviceId: string;
  readonly eventType: string;
  readonly value: number;
  /** The device's clock, unix milliseconds. */
  readonly timestamp: number;
  /** Absent when the device sent none. */
  readonly metadata?: Readonly<Record<string, string | number | boolean>>;
}

/** Events that are missing and will not come: load again what you show. */
export interface Gap {
  /** Why, as in docs/live.md. */
  readonly reason: string;
  /** How many; `null` when it is not known. */
  readonly missed: number | null;
  /** The place after the gap; `null` with `latest` when the newest values follow. */
  readonly cursor: string | null;
}

export type Transport = "websocket" | "sse" | "poll";

/** Why there is no connection now, or none any more. */
export interface Reason {
  /**
   * Of a stream that ended: `closed` (by `close()`), `credentials`, `revoked`, `forbidden`, `refused`. Else
   * what broke, for people: the server's own code of a problem, `network`, `silent`, `timeout`, `goaway`,
   * `token`, `upgrade`, `close_N`, `http_N`.
   */
  readonly code: string;
  readonly detail?: string;
}

export type State =
  | { readonly name: "connecting"; readonly transport?: Transport }
  | {
      readonly name: "open";
      readonly transport: Transport;
      /** What became of the cursor: everything after it follows, or not, or there was none. */
      readonly recovered: boolean | null;
    }
  | { readonly name: "waiting"; readonly retryInMs: number; readonly reason: Reason }
  | { readonly name: "paused" }
  | { readonly name: "closed"; readonly reason: Reason };

/** A stream token, and when it expires in unix milliseconds. */
export interface Token {
  readonly token: string;
  readonly expiresAt?: number;
}

export interface Options {
  /** Of the broadcaster, or of the all-in-one process; a page's own origin by default. */
  url?: string;
  /** A stream token, for a page that lives shorter than it. */
  token?: string;
  /**
   * Fetches a stream token: for the first connection, before one expires, and when one is refused. An error
   * with `status` 401 or 403 ends the stream; after any other it is asked again.
   */
  getToken?: () => Token | string | Promise<Token | string>;
  /** An API key to fetch stream tokens with. For programs; never put one into a page for others. */
  apiKey?: string;
  /** Events of these devices alone. */
  deviceId?: string | readonly string[];
  /** Events of these types alone. */
  eventType?: string | readonly string[];
  /**
   * `window`, the default: every event, one write a window. `live`: each event at once. `latest`: the newest of
   * each device and type, those that are stored first; show what is not older than what you show by `timestamp`.
   */
  mode?: "live" | "window" | "latest";
  /** With `window` and `latest`: its length, 0 to 1000, by default 50. */
  windowMs?: number;
  /** Where to go on, or `earliest` for all that the log still has; by default from now. */
  cursor?: string | null;
  /** Which may be used, the best one first; by default all three. */
  transports?: readonly Transport[];
  /** Each event, in order. */
  onEvent?: (event: PulseEvent) => void;
  /**
   * The events that came together, and the place after them; `null` with `latest` until the last of the values
   * it begins with. Called before `onEvent`.
   */
  onEvents?: (events: readonly PulseEvent[], cursor: string | null) => void;
  onGap?: (gap: Gap) => void;
  onState?: (state: State) => void;
  /** Instead of the ones of the platform: for Node 20, which has no WebSocket, or to go through a proxy. */
  fetch?: typeof globalThis.fetch;
  WebSocket?: new (url: string | URL, protocols?: string[]) => WebSocket;
  /** Instead of `Math.random`, for tests. */
  random?: () => number;
}

export type Batch =
  | { readonly events: readonly PulseEvent[]; readonly gap?: undefined; readonly cursor: string | null }
  | { readonly gap: Gap; readonly events?: undefined; readonly cursor: string | null };

export interface Stream {
  /**
   * The place after everything that was handed out; `null` before there is one. It moves when all
   * events that came together were handed out, so one that was kept never skips an event.
   */
  readonly cursor: string | null;
  readonly state: State;
  /** Ends the stream for good. */
  close(): void;
  /** Gives the connection up and keeps the place, for a page nobody looks at. */
  pause(): void;
  /** Goes on where `pause()` left off; what came meanwhile follows. */
  resume(): void;
  /**
   * What comes, from the beginning, for one loop that is done with a batch before it takes the next. Of a
   * stream that has neither `onEvent` nor `onEvents`. A loop that falls 10,000 events behind pauses the
   * stream until it has caught up. Ends with `close()`; throws `StreamClosed` when the stream ends for
   * another reason.
   */
  batches(): AsyncGenerator<Batch, void, void>;
}

export class StreamClosed extends Error {
  readonly code: string;
}

/** Opens a stream; it stays open through lost networks and restarts, until `close()` or until it is refused. */
export function connect(options?: Options): Stream;
