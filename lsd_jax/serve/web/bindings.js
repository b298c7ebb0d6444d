// Keys, buttons, pointer and wheel, as a manifest's bindings ask for them.

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
export const keyLabel = (code) => NAMES[code] ?? code.replace(/^Key|^Digit/, "");

/** What each bound input answers to: {codes} of keys, {others} such as the pointer, and {words}. */
export function keyHelp(manifest) {
  return manifest.inputs.filter((one) => one.binding).map(({ binding, name, description }) => {
    const codes = binding.type === "axis" ? [...binding.negative_keys, ...binding.positive_keys]
      : binding.keys ?? [];
    const buttons = (binding.mouse_buttons ?? []).map((one) => `mouse button ${one + 1}`);
    const others = ["pointer", "wheel"].includes(binding.type) ? [binding.type] : buttons;
    return { codes, others, words: description || name };
  });
}

/** Calls `act(name, args)` as the bindings say, until `stop` is called, which it gives beside
 * `press(code, pressed)`, for those without keys. */
export function bindKeys(manifest, view, act) {
  const down = new Set();
  const stop = new AbortController();
  const { signal } = stop;
  const bound = (type) => manifest.inputs.filter((one) => one.binding?.type === type);
  const axisValue = ({ positive_keys: up, negative_keys: back }) =>
    Number(up.some((key) => down.has(key))) - Number(back.some((key) => down.has(key)));

  const changed = (code, pressed) => {
    if (!pressed && !down.has(code)) return false;
    const before = new Map(bound("axis").map((one) => [one.name, axisValue(one.binding)]));
    if (pressed) down.add(code);
    else down.delete(code);
    let used = false;
    for (const { name, binding } of bound("axis")) {
      const value = axisValue(binding);
      used ||= [...binding.positive_keys, ...binding.negative_keys].includes(code);
      if (value !== before.get(name)) act(name, { value });
    }
    for (const { name, binding } of bound("hold")) {
      if (binding.keys.includes(code)) { used = true; act(name, { pressed }); }
    }
    for (const { name, binding } of bound("press")) {
      if (binding.keys.includes(code)) { used = true; if (pressed) act(name, {}); }
    }
    return used;
  };

  const isText = ({ target }) => /^(INPUT|TEXTAREA)$/.test(target.tagName);
  document.addEventListener("keydown", (event) => {
    if (event.repeat || isText(event) || event.ctrlKey || event.metaKey) return;
    if (changed(event.code, true)) event.preventDefault();
  }, { signal });
  document.addEventListener("keyup", (event) => changed(event.code, false), { signal });
  window.addEventListener("blur", () => [...down].forEach((code) => changed(code, false)), { signal });

  for (const type of ["mousedown", "mouseup"]) {
    view.addEventListener(type, (event) => {
      for (const { name, binding } of [...bound("hold"), ...bound("press")]) {
        if (!binding.mouse_buttons.includes(event.button)) continue;
        if (binding.type === "hold") act(name, { pressed: type === "mousedown" });
        else if (type === "mousedown") act(name, {});
      }
    }, { signal });
  }

  let moved = { dx: 0, dy: 0 }, turned = 0, timer = 0;
  const flush = () => {
    timer = 0;
    if (moved.dx || moved.dy) for (const { name } of bound("pointer")) act(name, moved);
    for (const { name, binding } of bound("wheel")) {
      if (turned) act(name, { delta: turned / binding.step });
    }
    moved = { dx: 0, dy: 0 };
    turned = 0;
  };
  const later = () => { timer ||= setTimeout(flush, 33); };
  if (bound("pointer").length) {
    const locks = bound("pointer").some((one) => one.binding.pointer_lock);
    view.addEventListener("click", () => { if (locks) view.requestPointerLock?.(); }, { signal });
    view.addEventListener("pointermove", ({ movementX, movementY }) => {
      if (locks && document.pointerLockElement !== view) return;
      moved = { dx: moved.dx + movementX, dy: moved.dy + movementY };
      later();
    }, { signal });
  }
  if (bound("wheel").length) {
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      turned += event.deltaY;
      later();
    }, { signal, passive: false });
  }
  return { press: changed, stop: () => { clearTimeout(timer); stop.abort(); } };
}
