// The shelf in the reader's own browser. Tales known to either side are put together, those taken off are left out, on
// this page or on another one of the same reader: a tale that this page has seen in the browser and that is gone there.

const KEY = "tiny-stories-shelf"
const MOST = 60

export default function (component) {
  const { data, parentElement, setStateValue } = component
  let stored = [], usable = true, damaged = false
  let kept = null
  try { kept = localStorage.getItem(KEY) } catch { usable = false }
  try { stored = JSON.parse(kept) ?? [] } catch { damaged = true }
  if (!Array.isArray(stored)) [stored, damaged] = [[], true]  // it is written anew
  const tales = new Map()
  for (const tale of [...stored, ...data.shelf]) {
    if (typeof tale?.text !== "string" || typeof tale.told !== "string") continue
    tales.delete(tale.text)  // so that it stands where the page has it
    tales.set(tale.text, tale)
  }
  const there = new Set(stored.map((tale) => tale?.text))
  const seen = kept === null || damaged ? [] : parentElement.seen ?? []
  const gone = seen.filter((text) => !there.has(text))
  for (const text of [...data.removed, ...gone]) tales.delete(text)
  const all = [...tales.values()].sort((one, other) => (one.told > other.told) - (one.told < other.told)).slice(-MOST)
  try {
    if (JSON.stringify(all) !== JSON.stringify(stored)) localStorage.setItem(KEY, JSON.stringify(all))
  } catch { usable = false }
  const shown = data.shelf.map((tale) => tale.text)
  parentElement.seen = [...all.map((tale) => tale.text), ...gone.filter((text) => shown.includes(text))]
  // Told once: what the page cannot read it would never take in.
  const news = data.session + usable + all.map((tale) => tale.text).sort().join()
  const known = shown.sort().join()
  if ((!usable || data.session + usable + known !== news) && parentElement.told !== news) {
    parentElement.told = news
    setStateValue("stored", { tales: all, usable, gone })
  }
}
