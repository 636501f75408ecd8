/*
 * A table body whose rows are made once and used again. What is written is text, never markup, and only
 * where it changed.
 */

export class Rows {
  #body;
  #classes;
  #rows = [];

  /** `classes`: of each column's cells. */
  constructor(body, classes) {
    this.#body = body;
    this.#classes = classes;
  }

  /** Shows these; each an array of cells: a text, or `{ text, title }`. */
  show(items) {
    while (this.#rows.length < items.length) this.#rows.push(this.#make());
    this.#rows.forEach((row, index) => {
      row.hidden = index >= items.length;
      if (row.hidden) return;
      items[index].forEach((cell, column) => {
        const { text, title } = typeof cell === "string" ? { text: cell, title: "" } : cell;
        const shown = row.cells[column];
        if (shown.textContent !== text) shown.textContent = text;
        if (shown.title !== title) shown.title = title;
      });
    });
  }

  #make() {
    const row = this.#body.insertRow();
    for (const name of this.#classes) row.insertCell().className = name;
    return row;
  }
}
