// The shelf in the reader's own browser. Tales known to either side are put together, those taken off are left out.

const KEY = "tiny-stories-shelf"
const MOST = 60

export default function (component) {
  const { data, parentElement, setStateValue } = component
  let stored = [], usable = true
  let kept = null
  try { kept = localStorage.getItem(KEY) } catch { usable = false }
  try {
    const found = JSON.parse(kept ?? "[]")
    if (Array.isArray(found)) stored = found
  } catch {}  // damaged: it is written anew
  const tales = new Map()
  for (const tale of [...stored, ...data.shelf]) {
    if (typeof tale?.text !== "string" || typeof tale.told !== "string") continue
    tales.delete(tale.text)  // so that it stands where the page has it
    tales.set(tale.text, tale)
  }
  for (const text of data.removed) tales.delete(text)
  const all = [...tales.values()].sort((one, other) => (one.told > other.told) - (one.told < other.told)).slice(-MOST)
  try {
    if (JSON.stringify(all) !== JSON.stringify(stored)) localStorage.setItem(KEY, JSON.stringify(all))
  } catch { usable = false }
  // Told once: what the page cannot read it would never take in.
  const news = data.session + usable + all.map((tale) => tale.text).sort().join()
  const known = data.shelf.map((tale) => tale.text).sort().join()
  if ((!usable || data.session + usable + known !== news) && parentElement.told !== news) {
    parentElement.told = news
    setStateValue("stored", { tales: all, usable })
  }
}
