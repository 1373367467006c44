"""The script that draws the spikes of a sentence on a canvas."""

RASTER_SCRIPT = """
for (const raster of document.querySelectorAll(".raster")) {
  const select = raster.querySelector("select"), canvas = raster.querySelector("canvas");
  const view = raster.querySelector(".view"), words = [...raster.querySelectorAll(".tokens span")];
  const said = raster.querySelector("output");
  const steps = Number(raster.dataset.timesteps), columns = steps * Number(raster.dataset.tokens);
  const least = 0.25, most = 32;
  let features = 0, bits = null, wide = 0, high = 0;
  const fires = (column, feature) => {
    const place = column * features + feature;
    return (bits[place >> 3] >> (7 - (place & 7))) & 1;
  };
  const colour = (name) => {
    const probe = document.createElement("canvas").getContext("2d");
    probe.fillStyle = getComputedStyle(raster).getPropertyValue(name).trim();
    probe.fillRect(0, 0, 1, 1);
    return probe.getImageData(0, 0, 1, 1).data;
  };
  const draw = () => {
    canvas.width = columns;
    canvas.height = features;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, features);
    const spike = colour("--bar"), papers = [colour("--paper"), colour("--track")];
    for (let column = 0; column < columns; column++) {
      const paper = papers[Math.floor(column / steps) % 2];
      for (let feature = 0; feature < features; feature++) {
        image.data.set(fires(column, feature) ? spike : paper, 4 * (feature * columns + column));
      }
    }
    context.putImageData(image, 0, 0);
  };
  const resize = () => {
    canvas.style.width = `${columns * wide}px`;
    canvas.style.height = `${features * high}px`;
    for (const word of words) word.style.width = `${steps * wide}px`;
  };
  const choose = () => {
    const chosen = select.selectedOptions[0], text = atob(chosen.dataset.bits);
    features = Number(chosen.dataset.features);
    bits = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    wide = Math.max(4, Math.min(12, Math.floor(view.clientWidth / columns)));
    high = Math.max(least, Math.min(4, 384 / features));
    draw();
    resize();
    canvas.setAttribute("aria-label", `Spikes of ${chosen.value}: ${features} features, ${columns} columns`);
  };
  for (const button of raster.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", () => {
      const by = Number(button.dataset.zoom);
      if (wide * by < least || wide * by > 8 * most || high * by > most || high * by < least / 8) return;
      wide *= by;
      high *= by;
      resize();
    });
  }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.min(columns - 1, Math.floor((event.clientX - box.left) / wide));
    const feature = Math.min(features - 1, Math.floor((event.clientY - box.top) / high));
    if (column < 0 || feature < 0) return;
    const token = Math.floor(column / steps), state = fires(column, feature) ? "a spike" : "silent";
    const where = `token ${token} “${words[token].textContent}”, t = ${column % steps}, feature ${feature}`;
    said.textContent = `${where}: ${state}`;
  });
  select.addEventListener("change", choose);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  choose();
}
"""
