/* The chart: uPlot with the page's colours, which follow the light and dark of the system. */

import uPlot from "/page/uplot.js";

export class Chart {
  #element;
  #plot = null;
  #devices = "";

  constructor(element) {
    this.#element = element;
    new ResizeObserver(() => this.#plot?.setSize(this.#size)).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.#devices = ""));
  }

  /** Draws these lines, one a device. */
  show(devices, data) {
    const same = devices.join();
    if (same !== this.#devices || !this.#plot) {
      this.#plot?.destroy();
      this.#plot = new uPlot(this.#options(devices), data, this.#element);
      this.#devices = same;
    } else this.#plot.setData(data);
  }

  get #size() {
    return { width: Math.max(200, this.#element.clientWidth), height: this.#element.clientHeight };
  }

  #options(devices) {
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(`--${name}`).trim();
    const axis = {
      stroke: colour("quiet"),
      grid: { stroke: colour("line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const lines = devices.map((_, index) => ({
      stroke: colour(`series-${index}`),
      width: 1.75,
      spanGaps: true,
      points: { size: 4 },
    }));
    return {
      ...this.#size,
      legend: { show: false },
      cursor: { show: false },
      scales: { y: { range: around } },
      axes: [{ ...axis, space: 80, values: times }, { ...axis, size: 56 }],
      series: [{}, ...lines],
    };
  }
}

/** Some room above and below; a line that never moves lies in the middle. */
function around(_, least, most) {
  if (least === null) return [0, 1];
  const room = (most - least) * 0.1 || Math.abs(most) * 0.1 || 1;
  return [least - room, most + room];
}

function times(_, seconds) {
  const two = (number) => String(number).padStart(2, "0");
  return seconds.map((second) => {
    const time = new Date(second * 1_000);
    return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  });
}
