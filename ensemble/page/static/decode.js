// Decode a photograph as `ens` does: pixels as stored (color profiles ignored), upright by EXIF or else XMP, transparent
// pixels on white, of several frames the first. Browsers differ in which metadata they apply, so the metadata is read
// here and taken out of the file before the browser decodes it.

/** A file that cannot be shown: `why` is one of the keys of the sentences in page.js. */
export class Unreadable extends Error {
  constructor(why, facts = {}) {
    super(why);
    this.why = why;
    this.facts = facts;
  }
}

const STRIP = 1 << 21; // pixels copied per step: a canvas of the whole picture exceeds the limit of some browsers
const PREVIEW = 1280; // longer side of the picture on the page

/**
 * Decode the bytes of a file.
 *
 * @param {Uint8Array} bytes the file
 * @param {number} maxPixels larger pictures are refused before they are decoded
 * @returns {Promise<{width: number, height: number, pixels: Uint8Array, preview: ImageBitmap}>} pixels are H x W x 3, RGB
 */
export async function decode(bytes, maxPixels) {
  if (bytes.length === 0) throw new Unreadable("empty");
  const found = readHeader(bytes);
  if (found.width * found.height > maxPixels) throw new Unreadable("huge", found);
  if (found.cut) throw new Unreadable("cut");
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob(found.parts, { type: found.type }), {
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Unreadable("undecodable", { type: found.name });
  }
  try {
    const { width, height } = bitmap;
    if (width * height > maxPixels) throw new Unreadable("huge", { width, height });
    const turned = found.orientation > 4;
    const pixels = readPixels(bitmap, found.orientation);
    if (found.deep && isDark(pixels, found.bits)) throw new Unreadable("deep");
    return {
      width: turned ? height : width,
      height: turned ? width : height,
      pixels,
      preview: drawPreview(bitmap, found.orientation),
    };
  } finally {
    bitmap.close();
  }
}

/**
 * Tell whether 16-bit pixels, of which a browser shows the high bytes, seem to hold numbers of fewer bits: those that the
 * file names, or else 14 and fewer. `ens` scales them by the low bytes, which a browser does not give.
 */
function isDark(pixels, bits) {
  const limit = bits === 0 ? 64 : 1 << (bits - 8);
  let top = 0;
  for (const value of pixels) if (value > top) top = value;
  return top > 0 && top < limit;
}

/** Copy a bitmap's pixels to H x W x 3 bytes, upright. */
function readPixels(bitmap, orientation) {
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const context = whiteCanvas(width, rows);
  const out = new Uint8Array(width * height * 3);
  const [start, alongX, alongY] = strides(orientation, width, height);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -top);
    const rgba = context.getImageData(0, 0, width, count).data;
    let from = 0;
    for (let y = top; y < top + count; y++) {
      let to = 3 * (start + y * alongY);
      for (let x = 0; x < width; x++) {
        out[to] = rgba[from];
        out[to + 1] = rgba[from + 1];
        out[to + 2] = rgba[from + 2];
        from += 4;
        to += 3 * alongX;
      }
    }
  }
  return out;
}

/** Return where pixel (0, 0) of the file goes in the upright picture, and the steps of x and y there. */
function strides(orientation, width, height) {
  const last = width * height - 1;
  return [
    [0, 1, width], // 1: upright
    [width - 1, -1, width], // 2: mirrored
    [last, -1, -width], // 3: turned by 180 degrees
    [width * (height - 1), 1, -width], // 4: upside down, mirrored
    [0, height, 1], // 5: transposed
    [height - 1, height, -1], // 6: to be turned clockwise
    [last, -height, -1], // 7: transposed along the other diagonal
    [height * (width - 1), -height, 1], // 8: to be turned counterclockwise
  ][orientation - 1];
}

function drawPreview(bitmap, orientation) {
  const scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const turned = orientation > 4;
  const context = whiteCanvas(turned ? height : width, turned ? width : height);
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.setTransform(
    ...[
      [1, 0, 0, 1, 0, 0],
      [-1, 0, 0, 1, width, 0],
      [-1, 0, 0, -1, width, height],
      [1, 0, 0, -1, 0, height],
      [0, 1, 1, 0, 0, 0],
      [0, 1, -1, 0, height, 0],
      [0, -1, -1, 0, height, width],
      [0, -1, 1, 0, 0, width],
    ][orientation - 1],
  );
  context.drawImage(bitmap, 0, 0, width, height);
  return context.canvas.transferToImageBitmap();
}

function whiteCanvas(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Unreadable("memory");
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#fff";
  return context;
}

/**
 * Read a file's header: its size if it says so, its orientation, and its parts without metadata.
 *
 * @param {Uint8Array} bytes the file
 */
export function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const is = (text, at = 0) => text === latin(bytes, at, text.length);
  try {
    if (is("\xff\xd8")) return readJpeg(bytes, view);
    if (is("\x89PNG\r\n\x1a\n")) return readPng(bytes, view);
    if (is("RIFF") && is("WEBP", 8)) return readWebp(bytes, view);
    if (is("GIF8")) return plain(bytes, "GIF", "image/gif", view.getUint16(6, true), view.getUint16(8, true));
    if (is("BM")) return plain(bytes, "BMP", "image/bmp", view.getInt32(18, true), Math.abs(view.getInt32(22, true)));
    if (is("ftypavif", 4) || is("ftypavis", 4)) return plain(bytes, "AVIF", "image/avif");
    if (is("ftyphei", 4) || is("ftypmif1", 4)) return plain(bytes, "HEIC", "image/heic");
    if (is("II*\0") || is("MM\0*")) return plain(bytes, "TIFF", "image/tiff");
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a header that ends too early: the browser's decoder decides
  }
  return plain(bytes, "", "");
}

function plain(bytes, name, type, width = 0, height = 0) {
  return { name, type, width, height, orientation: 1, parts: [bytes], cut: false, deep: false, bits: 0 };
}

const JPEG_KEPT = new Set([0xe0, 0xee]); // JFIF, and Adobe's, which says how colors are stored

function readJpeg(bytes, view) {
  const found = { ...plain(bytes, "JPEG", "image/jpeg"), parts: [bytes.subarray(0, 2)], cut: true };
  let exif = null;
  let xmp = "";
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda) {
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at += 1; // padding
      continue;
    }
    const length = view.getUint16(at + 2);
    const end = at + 2 + length;
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) [found.height, found.width] = [view.getUint16(at + 5), view.getUint16(at + 7)];
    if (marker === 0xe1 && latin(bytes, at + 4, 6) === "Exif\0\0") exif ??= bytes.subarray(at + 10, end);
    if (marker === 0xe1 && latin(bytes, at + 4, 29) === "http://ns.adobe.com/xap/1.0/\0") xmp ||= latin(bytes, at + 33, length);
    const isMetadata = (marker >= 0xe0 && marker <= 0xef) || marker === 0xfe;
    if (!isMetadata || JPEG_KEPT.has(marker)) found.parts.push(bytes.subarray(at, end));
    at = end;
  }
  found.parts.push(bytes.subarray(at));
  // a decoder of a browser fills what lacks at the end with grey; pictures that end without their end marker are refused
  for (let end = bytes.length - 2; end >= at && found.cut; end--) {
    found.cut = !(bytes[end] === 0xff && bytes[end + 1] === 0xd9);
  }
  found.orientation = orientationOf(exif, xmp);
  return found;
}

const PNG_KEPT = new Set(["IHDR", "PLTE", "tRNS", "IDAT", "IEND"]);

function readPng(bytes, view) {
  const found = plain(bytes, "PNG", "image/png", view.getUint32(16), view.getUint32(20));
  found.parts = [bytes.subarray(0, 8)];
  found.deep = bytes[24] === 16;
  let exif = null;
  let xmp = "";
  for (let at = 8; at + 12 <= bytes.length; ) {
    const end = at + 12 + view.getUint32(at);
    const kind = latin(bytes, at + 4, 4);
    const data = bytes.subarray(at + 8, end - 4);
    if (PNG_KEPT.has(kind) || end > bytes.length) found.parts.push(bytes.subarray(at, end));
    if (kind === "eXIf") exif = data;
    if (kind === "sBIT") found.bits = sampleBits(data);
    if (kind === "iTXt" && latin(data, 0, 17) === "XML:com.adobe.xmp") xmp = latin(data, 17, data.length);
    if (kind === "tEXt" && latin(data, 0, 21) === "Raw profile type exif") exif ??= hexOf(latin(data, 22, data.length));
    at = end;
  }
  found.orientation = orientationOf(exif, xmp);
  return found;
}

/** Return the bits of the colors in a PNG's sBIT chunk, if they are fewer than the 16 of the file, and 8 or more; else 0. */
function sampleBits(data) {
  const most = Math.max(0, ...data.subarray(0, data.length >= 3 ? 3 : 1));
  return most >= 8 && most < 16 ? most : 0;
}

/** Return the bytes of ImageMagick's text: a line of its kind, a line of its length, then hexadecimal digits. */
function hexOf(text) {
  const digits = text.split("\n").slice(3).join("").match(/[0-9a-f]{2}/gi) ?? [];
  return Uint8Array.from(digits, (pair) => parseInt(pair, 16));
}

const WEBP_DROPPED = new Set(["EXIF", "XMP ", "ICCP"]);

function readWebp(bytes, view) {
  const found = { ...plain(bytes, "WebP", "image/webp"), parts: [] };
  let exif = null;
  let xmp = "";
  let size = 4;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const kind = latin(bytes, at, 4);
    const length = view.getUint32(at + 4, true);
    const end = at + 8 + length + (length % 2);
    let chunk = bytes.subarray(at, end);
    if (kind === "EXIF") exif = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "XMP ") xmp = latin(bytes, at + 8, length);
    if (kind === "VP8X") {
      chunk = chunk.slice();
      chunk[8] &= ~0x2c; // no profile, no EXIF, no XMP
      [found.width, found.height] = [1 + uint24(bytes, at + 12), 1 + uint24(bytes, at + 15)];
    } else if (kind === "VP8L" && found.width === 0) {
      const bits = view.getUint32(at + 9, true);
      [found.width, found.height] = [1 + (bits & 0x3fff), 1 + ((bits >> 14) & 0x3fff)];
    } else if (kind === "VP8 " && found.width === 0) {
      [found.width, found.height] = [view.getUint16(at + 14, true) & 0x3fff, view.getUint16(at + 16, true) & 0x3fff];
    }
    if (!WEBP_DROPPED.has(kind)) {
      found.parts.push(chunk);
      size += chunk.length;
    }
    at = end;
  }
  const head = bytes.slice(0, 12);
  new DataView(head.buffer).setUint32(4, size, true);
  found.parts.unshift(head);
  found.orientation = orientationOf(exif, xmp);
  return found;
}

function uint24(bytes, at) {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
}

/** Return the orientation, 1 to 8, that EXIF says, or else XMP; 1 where neither does. */
export function orientationOf(exif, xmp) {
  let found = null;
  try {
    if (exif !== null) found = exifOrientation(exif);
  } catch {
    return 1; // damaged, as in the program
  }
  if (found === null) found = Number(/tiff:Orientation(?:="|>)([0-9])/.exec(xmp)?.[1] ?? 1);
  return found >= 1 && found <= 8 ? found : 1;
}

function exifOrientation(exif) {
  const from = latin(exif, 0, 6) === "Exif\0\0" ? 6 : 0;
  const view = new DataView(exif.buffer, exif.byteOffset + from, exif.byteLength - from);
  const order = latin(exif, from, 2);
  if (order !== "II" && order !== "MM") throw new RangeError("no byte order");
  const little = order === "II";
  const first = view.getUint32(4, little);
  for (let entry = 0; entry < view.getUint16(first, little); entry++) {
    const at = first + 2 + 12 * entry;
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return null;
}

function latin(bytes, at, length) {
  let text = "";
  const end = Math.min(bytes.length, at + length);
  for (let i = at; i < end; i++) text += String.fromCharCode(bytes[i]);
  return text;
}
