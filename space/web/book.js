// The book page: sets a story, reveals it word by word, reads it aloud, and says which sentence was clicked.
// The story comes as data and enters the page as text nodes only.

const STEP = 45      // milliseconds from one word's appearance to the next one's
const LONGEST = 7000 // for a whole story

function setStory(data) {
  const article = document.createElement("article")
  article.className = data.testid === "story" ? "story" : "story small"
  article.dataset.testid = data.testid
  article.setAttribute("aria-label", data.label)
  article.dir = "auto"
  const words = []
  for (const paragraph of data.paragraphs) {
    const p = document.createElement("p")
    let apart = true // a blank stands before the next piece; the full stop after a marked word has none
    for (const sentence of paragraph) {
      const whole = document.createElement("span")
      whole.className = "sentence"
      whole.dataset.number = sentence.number
      for (const [text, asked] of sentence.parts) {
        const part = asked ? document.createElement("mark") : whole
        for (const piece of text.split(/(\s+)/)) {
          if (!piece) continue
          if (!piece.trim()) { part.append(piece); apart = true; continue }
          const word = document.createElement("span")
          word.className = "word"
          word.textContent = piece
          word.style.setProperty("--number", words.length)
          word.apart = apart
          apart = false
          words.push(word)
          part.append(word)
        }
        if (asked) whole.append(part)
      }
      p.append(whole)
    }
    article.append(p)
  }
  const step = Math.min(STEP, LONGEST / words.length)
  article.style.setProperty("--step", `${step}ms`)
  return { article, words, duration: step * words.length + 400 }
}

// A small screen ends above the book: a story that was just told is brought into view, as far as it goes.
function showWhole(book) {
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"
  book.scrollIntoView({ behavior, block: "nearest" })
}

// The browser says where in the text it is; some voices never do: then the whole story stays unlit.
function readAloud(words, buttons) {
  const synthesis = window.speechSynthesis
  let begins = [], reading = null
  const light = (word) => {
    words.forEach((other) => other.classList.toggle("spoken", other === word))
    word?.scrollIntoView?.({ block: "nearest" })
  }
  const show = (state) => {
    buttons.read.hidden = state !== "quiet"
    buttons.pause.hidden = buttons.stop.hidden = state === "quiet"
    buttons.pause.textContent = state === "paused" ? "Go on reading" : "Pause"
  }
  const stop = () => { reading = null; synthesis.cancel(); light(null); show("quiet") }
  buttons.read.onclick = () => {
    synthesis.cancel()
    let text = ""
    begins = words.map((word) => {
      if (word.apart && text) text += " "
      const at = text.length
      text += word.textContent
      return at
    })
    const said = new SpeechSynthesisUtterance(text)
    said.lang = "en-US"
    said.rate = 0.9
    said.voice = synthesis.getVoices().find((voice) => voice.lang.startsWith("en")) ?? null
    said.onboundary = (event) => {
      if (reading !== said || (event.name && event.name !== "word")) return
      light(words[begins.findLastIndex((at) => at <= event.charIndex)])
    }
    said.onend = said.onerror = () => { if (reading === said) stop() }
    reading = said
    synthesis.speak(said)
    show("reading")
    buttons.pause.focus()
  }
  buttons.pause.onclick = () => {
    if (buttons.pause.textContent === "Pause") { synthesis.pause(); show("paused") }
    else { synthesis.resume(); show("reading") }
  }
  buttons.stop.onclick = () => { stop(); buttons.read.focus() }
  show("quiet")
  return stop
}

export default function (component) {
  const { parentElement, data, setTriggerValue } = component
  const page = parentElement.querySelector(".page")
  const tools = parentElement.querySelector(".reading")
  if (page.dataset.shown !== data.id) {
    page.dataset.shown = data.id
    page.stopReading?.()
    parentElement.querySelector(".blank").hidden = data.paragraphs.length > 0
    const { article, words, duration } = setStory(data)
    if (data.reveal) {
      article.classList.add("revealing")
      setTimeout(() => article.classList.remove("revealing"), duration)
    }
    article.onclick = (event) => {
      const sentence = event.target.closest(".sentence")
      if (sentence && data.choose && getSelection().isCollapsed) {
        setTriggerValue("sentence", Number(sentence.dataset.number))
      }
    }
    page.replaceChildren(...(words.length ? [article] : []))
    if (data.reveal) showWhole(parentElement.querySelector(".book"))
    tools.hidden = true
    const synthesis = window.speechSynthesis
    if (synthesis && data.aloud && words.length) {
      const buttons = {
        read: tools.querySelector(".read"), pause: tools.querySelector(".pause"), stop: tools.querySelector(".stop"),
      }
      page.stopReading = readAloud(words, buttons)
      const voices = () => { tools.hidden = synthesis.getVoices().length === 0 }
      voices()
      synthesis.onvoiceschanged = voices // many browsers name their voices late
    }
  }
  for (const sentence of page.querySelectorAll(".sentence")) {
    sentence.classList.toggle("chosen", Number(sentence.dataset.number) === data.chosen)
  }
  return () => page.stopReading?.()
}
