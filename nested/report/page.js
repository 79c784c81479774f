const collator = new Intl.Collator(undefined, { numeric: true });
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = th.closest("table").tBodies[0], column = th.cellIndex;
    const sign = th.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const found = [...body.rows].map((row) => {
      const cell = row.cells[column];
      return { row, value: cell.dataset.value, text: cell.textContent };
    });
    found.sort((a, b) => {
      if (a.value === undefined || b.value === undefined) {
        if (a.value !== b.value) return a.value === undefined ? 1 : -1;
        return -sign * collator.compare(a.text, b.text);
      }
      return sign * (Number(a.value) - Number(b.value));
    });
    body.append(...found.map((one) => one.row));
  });
}
for (const filter of document.querySelectorAll(".filter")) {
  const input = filter.querySelector("input"), said = filter.querySelector("output");
  const rows = [...filter.nextElementSibling.querySelector("tbody").rows];
  let texts;
  input.addEventListener("input", () => {
    texts ??= rows.map((row) => row.textContent.toLowerCase());
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, k) => {
      row.hidden = !words.every((word) => texts[k].includes(word));
      left += !row.hidden;
    });
    said.value = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  });
}
for (const chooser of document.querySelectorAll(".chooser")) {
  const [one, other] = chooser.querySelectorAll("select"), table = chooser.querySelector("table");
  other.replaceChildren(...[...one.options].map((option) => option.cloneNode(true)));
  other.selectedIndex = 1;
  const tell = () => {
    const chosen = [one, other].map((select) => select.selectedOptions[0]);
    const [a, b] = chosen.map((option) => JSON.parse(option.dataset.config));
    chosen.forEach((option, k) => { table.tHead.rows[0].cells[k + 1].textContent = option.textContent; });
    const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((key) => a[key] !== b[key]).sort();
    table.tBodies[0].replaceChildren(...(keys.length ? keys : ["no difference"]).map((key) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      head.scope = "row";
      head.textContent = key;
      row.append(head, ...(keys.length ? [a, b] : []).map((values) => {
        const cell = document.createElement("td");
        cell.textContent = values[key] ?? "–";
        return cell;
      }));
      return row;
    }));
  };
  for (const select of [one, other]) select.addEventListener("change", tell);
  tell();
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
