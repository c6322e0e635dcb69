// The class-activation map over the photograph.

// matplotlib's color map inferno (CC0) at nine equally spaced points, as in the program's own pictures
const INFERNO = [
  [0, 0, 4],
  [33, 12, 74],
  [87, 16, 110],
  [138, 34, 106],
  [188, 55, 84],
  [228, 90, 49],
  [249, 142, 9],
  [249, 203, 53],
  [252, 255, 164],
];

const FAINTEST = 90; // opacity of 255: the photograph stays visible where there is little evidence
const STRONGEST = 185;

/**
 * Return the part of the photograph that the model saw, as shares of its width and height.
 *
 * The photograph is resized to `size / crop_pct` and cut to `size` around its center. With padding the part is larger
 * than the photograph.
 */
export function positionOfMap({ size, resize, crop_pct: share = 1 }, width, height) {
  if (resize === "squash") return centered(share, share);
  const [high, wide] = size;
  // one scale for both sides: of the shorter side with `center`, of the longer one with `pad`
  const scales = [wide / share / width, high / share / height];
  const scale = resize === "center" ? Math.max(...scales) : Math.min(...scales);
  return centered(wide / scale / width, high / scale / height);
}

function centered(width, height) {
  return { left: (1 - width) / 2, top: (1 - height) / 2, width, height };
}

/**
 * Draw a class's map on a canvas of the picture's size; return false where nothing speaks for the class.
 *
 * @param {HTMLCanvasElement} canvas where to draw
 * @param {{values: Float32Array, shape: number[]}} maps 1 x C x h x w
 */
export function drawMap(canvas, { values, shape }, chosen, place, picture) {
  const [, , rows, columns] = shape;
  const map = values.subarray(chosen * rows * columns, (chosen + 1) * rows * columns);
  const highest = Math.max(...map);
  [canvas.width, canvas.height] = [picture.width, picture.height];
  if (!(highest > 0)) return false;
  const small = new OffscreenCanvas(columns, rows);
  const image = new ImageData(columns, rows);
  map.forEach((value, i) => {
    const heat = Math.max(0, value / highest);
    image.data.set([...colorOf(heat), FAINTEST + (STRONGEST - FAINTEST) * heat], 4 * i);
  });
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(
    small,
    place.left * canvas.width,
    place.top * canvas.height,
    place.width * canvas.width,
    place.height * canvas.height,
  );
  return true;
}

function colorOf(heat) {
  const place = heat * (INFERNO.length - 1);
  const low = Math.min(INFERNO.length - 2, Math.floor(place));
  return INFERNO[low].map((value, c) => Math.round(value + (INFERNO[low + 1][c] - value) * (place - low)));
}
