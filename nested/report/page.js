for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = th.closest("table").tBodies[0], column = th.cellIndex;
    const sign = th.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value;
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined || y === undefined) {
        if (x !== y) return x === undefined ? 1 : -1;
        return -sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
      }
      return sign * (Number(x) - Number(y));
    };
    body.append(...[...body.rows].sort(order));
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
