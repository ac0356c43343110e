"use strict";
// Grids are Uint8Arrays of side^3 cells, x slowest, then y (up), then z.

// What a cell is; 0 is empty. The names are also those of the colours in the style sheet.
const KINDS = ["", "predicted", "true", "shared", "extra", "missed", "box"];
const KIND = Object.fromEntries(KINDS.map((name, index) => [name, index]));

// Bytes of a face: x, y, z, direction, kind, the light at its corners, two to fill.
// Directions are +x, -x, +y, -y, +z, -z. Corner i is moved along the next axis where i has bit 1,
// and along the one after where it has bit 2; its light from 0 to 3 stands in bits 2i and 2i + 1.
const FACE = 8;

// Return the kinds of the cells that a mode shows, and how many there are of each.
function classify(mode, percent, truth, threshold) {
  const cells = new Uint8Array(percent.length), counts = new Array(KINDS.length).fill(0);
  const [neither, onlyFound, onlyTrue, both] = {
    prediction: [0, KIND.predicted, 0, KIND.predicted],
    truth: [0, 0, KIND.true, KIND.true],
    difference: [0, KIND.extra, KIND.missed, KIND.shared],
  }[mode];
  for (let i = 0; i < cells.length; i++) {
    const found = percent[i] >= threshold;
    if (truth && truth[i]) cells[i] = found ? both : onlyTrue;
    else cells[i] = found ? onlyFound : neither;
    counts[cells[i]]++;
  }
  return { cells, counts };
}

// Return the numbers of cells that are found, true, and both.
function compare(percent, truth, threshold) {
  let found = 0, real = 0, both = 0;
  for (let i = 0; i < percent.length; i++) {
    const here = percent[i] >= threshold;
    found += here;
    real += truth[i];
    both += here && truth[i];
  }
  return { found, real, both, iou: found + real ? both / (found + real - both) : 1 };
}

// Return the faces between full and empty cells.
function findFaces(cells, side) {
  const wide = side + 2, step = [wide * wide, wide, 1];
  const kinds = new Uint8Array(wide ** 3);
  const at = (x, y, z) => (x + 1) * step[0] + (y + 1) * step[1] + z + 1;
  for (let x = 0; x < side; x++)
    for (let y = 0; y < side; y++)
      kinds.set(cells.subarray((x * side + y) * side, (x * side + y + 1) * side), at(x, y, 0));
  const faces = [];
  for (let x = 0; x < side; x++)
    for (let y = 0; y < side; y++)
      for (let z = 0; z < side; z++) {
        const here = at(x, y, z), kind = kinds[here];
        if (!kind) continue;
        for (let direction = 0; direction < 6; direction++) {
          const axis = direction >> 1;
          const front = here + (direction & 1 ? -step[axis] : step[axis]);
          if (kinds[front]) continue;
          const light = cornerLight(kinds, front, step[(axis + 1) % 3], step[(axis + 2) % 3]);
          faces.push(x, y, z, direction, kind, light, 0, 0);
        }
      }
  return Uint8Array.from(faces);
}

// A corner is the darker, the more of the three cells around it and in front of the face are full.
function cornerLight(kinds, front, next, after) {
  let packed = 0;
  for (let corner = 0; corner < 4; corner++) {
    const a = corner & 1 ? next : -next, b = corner & 2 ? after : -after;
    const one = kinds[front + a] > 0, other = kinds[front + b] > 0;
    const full = one && other ? 3 : one + other + (kinds[front + a + b] > 0);
    packed |= (3 - full) << (2 * corner);
  }
  return packed;
}

// Return the tiles of the cube's own six sides.
function boxFaces(tiles) {
  const faces = [];
  for (let direction = 0; direction < 6; direction++)
    for (let i = 0; i < tiles; i++)
      for (let j = 0; j < tiles; j++) {
        const cell = [0, 0, 0], axis = direction >> 1;
        cell[axis] = direction & 1 ? 0 : tiles - 1;
        cell[(axis + 1) % 3] = i;
        cell[(axis + 2) % 3] = j;
        faces.push(...cell, direction, KIND.box, 255, 0, 0);
      }
  return Uint8Array.from(faces);
}
