
"use strict";
// Replays the searches of a trace. Every text of the trace enters the page as text, never as HTML.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MILLISECONDS_PER_CHUNK = 1100;
  const DROPPED_IN_SIGHT = 12; // the other candidates unfold
  const SWIPE = 50; // pixels
  const MINUS = "\u2212";

  const byId = (id) => document.getElementById(id);
  const blocks = [...document.querySelectorAll("script.response")];
  const state = { response: 0, step: 1, selected: null, height: "value", timer: null };
  let search = null; // of the response that is shown: see `linkSearch`

  // ---- Data -------------------------------------------------------------------------------------------

  /** Give each candidate its chunk, rank and parent, and find what the page draws to scale. */
  function linkSearch(response) {
    let beams = [];
    const chunks = response.chunks.map((candidates, chunk) => {
      const nodes = candidates.map((candidate, rank) => ({
        ...candidate, chunk, rank, parent: candidate.parent === null ? null : beams[candidate.parent],
      }));
      beams = nodes.filter((node) => node.kept !== null);
      return { nodes, beams, cut: beams[beams.length - 1].value };
    });
    const nodes = chunks.flatMap((chunk) => chunk.nodes);
    const values = nodes.map((node) => node.value);
    const ratios = [response, ...nodes].flatMap((one) => one.ratios || []);
    return {
      chunks,
      values: extent(values),
      isRanked: chunks.some((chunk) => chunk.nodes.length > 1),
      scale: mostOf(ratios.map(Math.abs)),
      ratios: extent(ratios),
      answer: beams[0] || null,
      tokens: response.tokens ? response : null,
    };
  }

  const extent = (numbers) =>
    numbers.reduce(([low, high], n) => [Math.min(low, n), Math.max(high, n)], [Infinity, -Infinity]);

  /** Return what 98% of some sizes stay below, so that one huge token does not make all others pale. */
  function mostOf(sizes) {
    const sorted = sizes.sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(0.98 * (sorted.length - 1))] || sorted[sorted.length - 1] : 0;
  }

  function ancestors(node) {
    const path = [];
    for (let one = node; one; one = one.parent) path.unshift(one);
    return path;
  }

  // ---- Making elements -----------------------------------------------------------------------------

  function make(name, options = {}, ...children) {
    const { text, className, ...attributes } = options;
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function draw(name, attributes, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function signed(number, digits = 3) {
    const size = Math.abs(number);
    const text = size >= 1e5 || (size > 0 && size < 10 ** -digits) ? size.toExponential(1) : size.toFixed(digits);
    return (number < 0 ? MINUS : "+") + text;
  }

  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const flatten = (text) => text.replace(/\s*\n\s*/g, " \u21b5 ");

  // ---- The list of responses -----------------------------------------------------------------------

  function listResponses() {
    const list = byId("response-list");
    blocks.forEach(({ dataset }, place) => {
      const button = make("button", { type: "button" },
        make("span", { className: "title", text: `${place + 1}. ${dataset.title}` }),
        make("span", { className: "aside", text: dataset.value ? signed(Number(dataset.value), 2) : "" }));
      button.addEventListener("click", () => {
        open(place);
        if (!isWide.matches) byId("responses").open = false;
      });
      list.append(make("li", {}, button));
    });
    byId("find").addEventListener("input", findResponses);
  }

  function findResponses() {
    const wanted = byId("find").value.toLowerCase();
    let found = 0;
    for (const item of byId("response-list").children) {
      item.hidden = !item.textContent.toLowerCase().includes(wanted);
      found += item.hidden ? 0 : 1;
    }
    byId("none-found").hidden = found > 0;
  }

  // ---- One response ----------------------------------------------------------------------------------

  function open(place, step = Infinity) {
    pause();
    state.response = place;
    const response = JSON.parse(blocks[place].textContent);
    search = response.error === undefined ? linkSearch(response) : null;
    const numChunks = search ? search.chunks.length : 0;
    [...byId("response-list").children].forEach((item, i) => {
      if (i === place) item.firstChild.setAttribute("aria-current", "true");
      else item.firstChild.removeAttribute("aria-current");
    });
    byId("responses-summary").textContent = `Response ${place + 1} of ${blocks.length}`;
    byId("prompt-heading").textContent = response.error !== undefined ? "Refused" : response.prompt ? "Prompt" : "Response";
    byId("prompt").textContent = response.prompt || "";
    byId("prompt").hidden = !response.prompt;
    byId("refused").hidden = response.error === undefined;
    byId("refused").textContent = response.error || "";
    byId("facts").textContent = search ? describeSearch(response) : "";
    byId("replay").hidden = numChunks === 0;
    byId("text-section").hidden = !search;
    byId("keys").hidden = numChunks === 0;
    if (!search) return remember();
    byId("slider").max = Math.max(numChunks, 1);
    byId("tree-section").hidden = byId("candidates-section").hidden = !search.isRanked;
    if (numChunks === 0) {
      showLegend(search.scale > 0);
      byId("text-heading").textContent = "The answer";
      byId("text").replaceChildren(...tokenSpans(search.tokens));
      return remember();
    }
    drawTree();
    goTo(step);
  }

  function describeSearch(response) {
    const parts = [`id ${response.id}`];
    if (response.sample) parts.push(`sample ${response.sample + 1}`);
    const widest = Math.max(0, ...search.chunks.map((chunk) => chunk.nodes.length));
    const beams = Math.max(0, ...search.chunks.map((chunk) => chunk.beams.length));
    parts.push(count(search.chunks.length, "chunk"));
    parts.push(search.isRanked
      ? `at most ${count(widest, "candidate")} a chunk, ${count(beams, "beam")} kept`
      : "one candidate a chunk: nothing was ranked");
    return parts.join(" \u00b7 ");
  }

  function goTo(step) {
    const numChunks = search.chunks.length;
    state.step = Math.min(Math.max(step, 1), numChunks);
    const { beams } = search.chunks[state.step - 1];
    byId("slider").value = state.step;
    byId("place").textContent = `chunk ${state.step} of ${numChunks}`;
    byId("first").disabled = byId("back").disabled = state.step === 1;
    byId("last").disabled = byId("step").disabled = state.step === numChunks;
    byId("play").disabled = numChunks === 1;
    if (state.step === numChunks) pause();
    listCandidates();
    select(beams[0]);
    for (const group of byId("tree").querySelectorAll("[data-chunk]")) {
      group.classList.toggle("later", Number(group.dataset.chunk) >= state.step);
    }
    markColumn();
    remember();
  }

  function select(node) {
    state.selected = node;
    for (const button of byId("candidates").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.node === node));
    }
    markPath();
    showText();
  }

  // ---- The tree -----------------------------------------------------------------------------------------

  const TOP = 14, BOTTOM = 30, SIDE = 26;
  let layout = null;

  function planTree() {
    const widest = Math.max(...search.chunks.map((chunk) => chunk.nodes.length));
    const room = byId("tree-scroll").clientWidth || 600;
    const numChunks = search.chunks.length;
    const pitch = Math.min(Math.max((room - 2 * SIDE) / Math.max(numChunks - 1, 1), 44), 130);
    const height = Math.min(Math.max(16 * widest, 130), 280);
    const [low, high] = search.values;
    const y = state.height === "value"
      ? (node) => TOP + height * (high > low ? (high - node.value) / (high - low) : 0.5)
      : (node) => TOP + (height * (node.rank + 0.5)) / widest;
    const isSparse = pitch * (numChunks - 1) + 2 * SIDE < room;
    return {
      pitch, height, widest, y,
      width: isSparse ? room : pitch * (numChunks - 1) + 2 * SIDE,
      x: (chunk) => SIDE + pitch * chunk,
      radius: Math.min(Math.max((0.35 * height) / widest, 2.5), 5.5),
    };
  }

  function drawTree() {
    if (!search.isRanked) return;
    layout = planTree();
    const { x, y, width, height, pitch } = layout;
    const tree = byId("tree");
    const total = TOP + height + BOTTOM;
    tree.setAttribute("width", width);
    tree.setAttribute("height", total);
    tree.setAttribute("aria-label", `${count(search.chunks.length, "chunk")} from left to right; each candidate is a dot ` +
      `at the height of its ${state.height}, joined to the beam that it continues. The list below says the same in words.`);
    drawAxis(total);
    const band = draw("rect", { class: "now", y: 0, width: Math.min(pitch, 60), height: total });
    const columns = search.chunks.map((chunk, number) => {
      const shift = 0.42 * Math.min(pitch, 60);
      const level = state.height === "value" ? y(chunk.beams[chunk.beams.length - 1]) : cutBelow(chunk);
      return draw("g", { "data-chunk": number },
        ...chunk.nodes.filter((node) => node.parent).map(drawEdge),
        draw("path", { class: "cut", d: `M${x(number) - shift} ${level}h${2 * shift}` }),
        ...[...chunk.nodes].reverse().map(drawNode)); // the best on top
    });
    const every = Math.ceil(30 / pitch);
    const names = search.chunks.map((_, number) => draw("text",
      { class: "column-name", x: x(number), y: total - 10, "data-name": number }, number % every ? "" : String(number + 1)));
    tree.replaceChildren(band, ...columns, draw("g", { id: "path" }), ...names);
  }

  const cutBelow = (chunk) => TOP + (layout.height * chunk.beams.length) / layout.widest;

  function drawAxis(total) {
    const [low, high] = search.values;
    const { height } = layout;
    const marks = state.height === "rank" ? [[0.5 / layout.widest, "1"], [1 - 0.5 / layout.widest, String(layout.widest)]]
      : high > low ? [0, 0.25, 0.5, 0.75, 1].map((part) => [part, signed(high - part * (high - low), 2)])
        : [[0.5, signed(high, 2)]];
    byId("axis").replaceChildren(...marks.map(([part, text]) => {
      const label = make("span", { text });
      label.style.top = `${TOP + part * height}px`;
      return label;
    }));
    byId("axis").style.height = `${total}px`;
  }

  function drawEdge(node) {
    const [x1, x2] = [layout.x(node.chunk - 1), layout.x(node.chunk)];
    const [y1, y2] = [layout.y(node.parent), layout.y(node)];
    const middle = (x1 + x2) / 2;
    return draw("path", { class: "edge", d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
  }

  function drawNode(node) {
    const [x, y, r] = [layout.x(node.chunk), layout.y(node), layout.radius];
    const attributes = { class: `node${node.kept === null ? "" : " kept"}` };
    const element = node.finished
      ? draw("rect", { ...attributes, x: x - r, y: y - r, width: 2 * r, height: 2 * r })
      : draw("circle", { ...attributes, cx: x, cy: y, r });
    element.append(draw("title", {}, `${signed(node.value)}  ${flatten(node.text).trim()}`));
    element.node = node;
    return element;
  }

  /** Draw the way to the selected candidate over everything else. */
  function markPath() {
    if (!search.isRanked) return;
    const nodes = ancestors(state.selected);
    const marks = [...nodes.slice(1).map(drawEdge), ...nodes.map(drawNode)];
    for (const mark of marks) {
      mark.classList.add(mark.node ? "on-path" : "path");
      if (mark.node === state.selected) mark.classList.add("selected");
    }
    byId("tree").querySelector("#path").replaceChildren(...marks);
  }

  function markColumn() {
    if (!search.isRanked) return;
    const column = state.step - 1;
    const band = byId("tree").querySelector(".now");
    band.setAttribute("x", layout.x(column) - Number(band.getAttribute("width")) / 2);
    for (const name of byId("tree").querySelectorAll("[data-name]")) {
      const isNow = Number(name.dataset.name) === column;
      name.classList.toggle("is-now", isNow);
      if (isNow) name.textContent = String(column + 1);
    }
    const box = byId("tree-scroll");
    const at = layout.x(column);
    if (at < box.scrollLeft + SIDE || at > box.scrollLeft + box.clientWidth - SIDE - layout.pitch) {
      box.scrollLeft = at - box.clientWidth / 2;
    }
  }

  function clickTree(event) {
    const place = event.clientX - byId("tree").getBoundingClientRect().left;
    const node = event.target.node;
    const column = node ? node.chunk : Math.round((place - SIDE) / layout.pitch);
    if (column < 0 || column >= search.chunks.length) return;
    pause();
    goTo(column + 1);
    if (node) select(node);
  }

  // ---- The candidates of a chunk ------------------------------------------------------------------

  function listCandidates() {
    if (!search.isRanked) return;
    const chunk = search.chunks[state.step - 1];
    const dropped = chunk.nodes.slice(chunk.beams.length);
    const isLast = state.step === search.chunks.length;
    byId("candidates-heading").textContent = `Candidates of chunk ${state.step}`;
    byId("boundary").textContent =
      `${count(chunk.nodes.length, "candidate")}, ranked by value; ` +
      (isLast ? "the search ends here, and the best is the answer." : dropped.length === 0 ? "all go on."
        : `the best ${chunk.beams.length} go on, ${dropped.length} dropped.`);
    const items = chunk.beams.map((node) => make("li", {}, candidateRow(node, chunk)));
    if (dropped.length) items.push(make("li", { className: "cut-line", text: `lowest value kept ${signed(chunk.cut)}` }));
    items.push(...dropped.slice(0, DROPPED_IN_SIGHT).map((node) => make("li", {}, candidateRow(node, chunk))));
    const unseen = dropped.slice(DROPPED_IN_SIGHT);
    if (unseen.length) {
      const rest = make("ol", {}, ...unseen.map((node) => make("li", {}, candidateRow(node, chunk))));
      items.push(make("li", {}, make("details", {}, make("summary", { text: `${unseen.length} more dropped` }), rest)));
    }
    byId("candidates").replaceChildren(...items);
  }

  function candidateRow(node, chunk) {
    const [low, high] = extent(chunk.nodes.map((one) => one.value));
    const bar = make("span", { className: "bar", "aria-hidden": "true" });
    bar.style.backgroundSize = `${high > low ? (100 * (node.value - low)) / (high - low) : 100}% 100%`;
    const words = node.tokens ? tokenSpans(node, { isFlat: true }) : [flatten(node.text)];
    const button = make("button", { type: "button", className: `candidate${node.kept === null ? "" : " kept"}`, "aria-pressed": "false" },
      make("span", { className: "rank" }, make("span", { className: "unseen", text: "rank " }), String(node.rank + 1)),
      make("span", { className: "value" }, make("span", { text: signed(node.value) }), bar),
      node.text ? make("span", { className: "words" }, ...words) : make("span", { className: "words nothing", text: "nothing new" }),
      make("span", { className: "why", text: explain(node, chunk) }));
    button.node = node;
    button.addEventListener("click", () => select(node));
    return button;
  }

  /** Say where a candidate comes from, what becomes of it, and why. */
  function explain(node, chunk) {
    const hadEnded = node.parent !== null && node.parent.finished;
    const origin = node.parent === null ? [] : [`from beam ${node.parent.kept + 1}`];
    const end = hadEnded ? ["ended before"] : node.finished ? ["ends here"] : [];
    const fate = node.kept !== null ? "kept"
      : node.value === chunk.cut ? "a tie: lower rows go first"
        : `${signed(node.value - chunk.cut).slice(1)} too low`;
    return [...origin, ...end, fate].join(" \u00b7 ");
  }

  // ---- Text -----------------------------------------------------------------------------------------------

  function showText() {
    const node = state.selected;
    const isAnswer = node === search.answer;
    const path = ancestors(node);
    byId("text-heading").textContent = isAnswer ? "The answer" : node.kept === null
      ? `Dropped after chunk ${node.chunk + 1}, rank ${node.rank + 1}` : `Beam ${node.kept + 1} after chunk ${node.chunk + 1}`;
    // A trace may know the tokens of its answer alone.
    const isWhole = isAnswer && search.tokens && !path.some((one) => one.tokens);
    const spans = isWhole ? [make("span", { className: "chunk" }, ...tokenSpans(search.tokens))]
      : path.filter((one) => one.text || one.tokens).map((one) => make("span",
        { className: `chunk${one === node && path.length > 1 ? " is-now" : ""}` },
        ...(one.tokens ? tokenSpans(one) : [one.text])));
    showLegend(isWhole || path.some((one) => one.tokens));
    byId("text").replaceChildren(...(spans.some((span) => span.textContent) ? spans : [make("span", { className: "nothing", text: "no text" })]));
  }

  /** Return a span for each token, coloured by what guidance added to it. */
  function tokenSpans(one, { isFlat = false } = {}) {
    if (!one) return [];
    return one.tokens.map((text, i) => {
      const ratio = one.ratios[i];
      const strength = search.scale ? Math.min(Math.abs(ratio) / search.scale, 1) : 0;
      const span = make("span", { className: `token${ratio < 0 && strength > 0.2 ? " less" : ""}`, title: signed(ratio) },
        isFlat ? flatten(text) : text, make("span", { className: "number", text: signed(ratio, 2) }));
      span.style.backgroundColor = `rgba(var(--${ratio < 0 ? "less" : "more"}), ${(0.6 * strength).toFixed(2)})`;
      return span;
    });
  }

  /** Show the colours' key where there are colours, and say where the trace has none for this text. */
  function showLegend(isColoured) {
    byId("legend").hidden = !isColoured;
    byId("no-colours").hidden = isColoured || search.scale === 0;
    const [low, high] = search.ratios;
    byId("lowest").textContent = signed(-search.scale, 2) + (low < -search.scale ? " or less" : "");
    byId("highest").textContent = signed(search.scale, 2) + (high > search.scale ? " or more" : "");
  }

  // ---- Playing, keys, touch ------------------------------------------------------------------------

  function play() {
    if (state.step === search.chunks.length) goTo(1);
    state.timer = setInterval(() => goTo(state.step + 1), MILLISECONDS_PER_CHUNK);
    showPlaying();
  }

  function pause() {
    clearInterval(state.timer);
    state.timer = null;
    showPlaying();
  }

  function showPlaying() {
    byId("play").classList.toggle("is-playing", state.timer !== null);
    byId("play-label").textContent = state.timer === null ? "Play" : "Pause";
  }

  const togglePlay = () => (state.timer === null ? play() : pause());

  function move(step) {
    pause();
    goTo(step);
  }

  function onKey(event) {
    const isTyping = event.target.closest("input[type=search], input[type=radio], #slider, .scroll");
    if (event.altKey || event.ctrlKey || event.metaKey || isTyping || !search || !search.chunks.length) return;
    const moves = { ArrowRight: state.step + 1, ArrowLeft: state.step - 1, Home: 1, End: Infinity };
    if (event.key in moves) move(moves[event.key]);
    else if (event.key === " " && !event.target.closest("button, summary, input, a")) {
      if (search.chunks.length > 1) togglePlay();
    } else return;
    event.preventDefault();
  }

  function watchSwipes(element) {
    let start = null;
    element.addEventListener("touchstart", (event) => {
      const isOther = event.touches.length > 1 || event.target.closest(".scroll, input");
      start = isOther ? null : event.touches[0];
    }, { passive: true });
    element.addEventListener("touchend", (event) => {
      if (!start || !search || !search.chunks.length) return;
      const end = event.changedTouches[0];
      const [dx, dy] = [end.clientX - start.clientX, end.clientY - start.clientY];
      start = null;
      if (Math.abs(dx) > SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) move(state.step + (dx < 0 ? 1 : -1));
    }, { passive: true });
  }

  // ---- The address: #RESPONSE/CHUNK --------------------------------------------------------------------

  function remember() {
    history.replaceState(null, "", `#${state.response + 1}/${state.step}`);
  }

  function openFromAddress() {
    const [, place, step] = /^#(\d{1,9})(?:\/(\d{1,9}))?$/.exec(location.hash) || [];
    const isThere = place >= 1 && place <= blocks.length;
    open(isThere ? place - 1 : 0, isThere && step ? Number(step) : Infinity);
  }

  const isWide = matchMedia("(min-width: 60rem)");

  function fitList() {
    byId("responses").open = isWide.matches;
  }

  function start() {
    byId("layout").hidden = false;
    byId("layout").classList.toggle("several", blocks.length > 1);
    byId("responses").hidden = blocks.length < 2;
    byId("summary").textContent = `${count(blocks.length, "response")} of a guided run, replayed`;
    listResponses();
    fitList();
    isWide.addEventListener("change", fitList);
    byId("first").addEventListener("click", () => move(1));
    byId("back").addEventListener("click", () => move(state.step - 1));
    byId("play").addEventListener("click", togglePlay);
    byId("step").addEventListener("click", () => move(state.step + 1));
    byId("last").addEventListener("click", () => move(Infinity));
    byId("slider").addEventListener("input", () => move(Number(byId("slider").value)));
    byId("tree").addEventListener("click", clickTree);
    byId("numbers").addEventListener("change", () => byId("main").classList.toggle("numbers", byId("numbers").checked));
    byId("heights").addEventListener("change", (event) => {
      state.height = event.target.value;
      redraw();
    });
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) > 1) redraw();
      width = entry.contentRect.width;
    }).observe(byId("tree-scroll"));
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", openFromAddress);
    watchSwipes(byId("main"));
    openFromAddress();
  }

  function redraw() {
    if (!search || !search.isRanked) return;
    const { selected } = state;
    drawTree();
    goTo(state.step);
    select(selected);
  }

  start();
})();
