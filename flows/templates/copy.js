
// "Copy": the text goes to the clipboard, or is marked where the browser gives no page that right.
const said = document.getElementById("copied");

async function copy(place) {
  try {
    await navigator.clipboard.writeText(place.textContent);
    return "Copied.";
  } catch {
    getSelection().selectAllChildren(place);
    return "Selected; press Ctrl+C, or ⌘C on a Mac.";
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => { said.textContent = await copy(document.getElementById(button.dataset.copy)); });
}
