// Two ways to draw the same faces: WebGL 2, and where there is none, a plain canvas.

const SHADE = [0.88, 0.7, 1, 0.5, 0.8, 0.64]; // of the directions of faces
const LEAST_LIGHT = 0.58; // of a corner with full cells all around
const LINE = 0.2; // how much darker the edges of cells are
const FOCAL = 3.2; // of half the picture's shorter side
const TRIANGLES = [0, 1, 2, 2, 1, 3]; // corners of a face
const START = { azimuth: 0.62, elevation: 0.42, distance: 3.1 };

// Where the viewer stands: around the middle of a cube of side 1, y up, angles in radians.
class Camera {
  constructor() { this.reset(); }

  reset() { Object.assign(this, START); }

  turn(right, up) {
    this.azimuth += right;
    this.elevation = Math.min(1.55, Math.max(-1.55, this.elevation + up));
  }

  zoom(factor) { this.distance = Math.min(20, Math.max(1.2, this.distance * factor)); }

  direction() {
    const { azimuth, elevation } = this, flat = Math.cos(elevation);
    return [flat * Math.cos(azimuth), Math.sin(elevation), flat * Math.sin(azimuth)];
  }

  eye() { return this.direction().map((part) => part * this.distance); }

  // Return the 4 x 4 matrix from points to clip space, a column after the other.
  matrix(width, height) {
    const towards = this.direction(), shorter = Math.min(width, height);
    const right = [Math.sin(this.azimuth), 0, -Math.cos(this.azimuth)];
    const up = [
      right[2] * towards[1], right[0] * towards[2] - right[2] * towards[0], -right[0] * towards[1],
    ];
    const x = (FOCAL * shorter) / width, y = (FOCAL * shorter) / height;
    const near = Math.max(0.05, this.distance - 1), far = this.distance + 1;
    const scale = (far + near) / (far - near), shift = (-2 * far * near) / (far - near);
    const columns = [0, 1, 2].map((axis) => [
      x * right[axis], y * up[axis], -scale * towards[axis], -towards[axis],
    ]);
    return new Float32Array([
      ...columns.flat(), 0, 0, scale * this.distance + shift, this.distance,
    ]);
  }
}

const VERTEX = `#version 300 es
layout(location = 0) in uvec4 cell; // x, y, z, direction
layout(location = 1) in uvec4 paint; // kind, light, corner
uniform mat4 matrix;
uniform vec3 eye, colours[${KINDS.length}];
uniform float side, shades[6];
out vec2 place;
flat out vec4 light;
flat out vec3 colour;
flat out float line;
void main() {
  place = vec2(paint.z & 1u, paint.z >> 1u);
  int axis = int(cell.w) >> 1, back = int(cell.w) & 1;
  vec3 point = vec3(cell.xyz);
  point[axis] += float(1 - back);
  point[(axis + 1) % 3] += place.x;
  point[(axis + 2) % 3] += place.y;
  point = point / side - 0.5;
  gl_Position = matrix * vec4(point, 1);
  bool box = paint.x == ${KIND.box}u;
  // Of the cube's own sides only those behind everything are wanted.
  if (box && (back == 0 ? eye[axis] > 0.5 : eye[axis] < -0.5)) gl_Position = vec4(2, 2, 2, 1);
  light = ${LEAST_LIGHT} + ${1 - LEAST_LIGHT} / 3.0 * vec4(
    paint.y & 3u, paint.y >> 2u & 3u, paint.y >> 4u & 3u, paint.y >> 6u);
  colour = colours[paint.x] * (box ? 1.0 : shades[cell.w]);
  line = box ? ${LINE / 2} : ${LINE};
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
flat in vec4 light;
flat in vec3 colour;
flat in float line;
out vec4 result;
void main() {
  vec2 pixel = fwidth(place);
  vec2 inside = smoothstep(vec2(0), pixel * 1.3, min(place, 1.0 - place));
  float small = clamp(1.6 - 5.0 * max(pixel.x, pixel.y), 0.0, 1.0);
  float edge = line * small * (1.0 - inside.x * inside.y);
  vec2 pair = mix(light.xz, light.yw, place.x);
  result = vec4(colour * mix(pair.x, pair.y, place.y) * (1.0 - edge), 1);
}`;

class WebGLPainter {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: true });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.gl = gl;
    this.program = gl.createProgram();
    this.compile(gl.VERTEX_SHADER, VERTEX);
    this.compile(gl.FRAGMENT_SHADER, FRAGMENT);
    gl.linkProgram(this.program);
    if (!gl.getProgramParameter(this.program, gl.LINK_STATUS))
      throw new Error(gl.getProgramInfoLog(this.program) || "WebGL does not work");
    gl.useProgram(this.program);
    gl.enable(gl.DEPTH_TEST);
    gl.uniform1fv(this.uniform("shades"), SHADE);
  }

  compile(kind, source) {
    const shader = this.gl.createShader(kind);
    this.gl.shaderSource(shader, source);
    this.gl.compileShader(shader);
    this.gl.attachShader(this.program, shader);
  }

  uniform(name) { return this.gl.getUniformLocation(this.program, name); }

  // Return faces as `draw` takes them.
  load(faces, side) {
    const { gl } = this, array = gl.createVertexArray(), count = faces.length / FACE;
    const words = new Uint32Array(faces.buffer); // two for a face, the lowest byte first
    const corners = new Uint32Array(4 * words.length), indices = new Uint32Array(6 * count);
    for (let face = 0; face < count; face++) {
      for (let corner = 0; corner < 4; corner++) {
        corners[8 * face + 2 * corner] = words[2 * face];
        corners[8 * face + 2 * corner + 1] = words[2 * face + 1] | (corner << 16);
      }
      for (let i = 0; i < 6; i++) indices[6 * face + i] = 4 * face + TRIANGLES[i];
    }
    gl.bindVertexArray(array);
    const buffers = [
      this.fill(gl.ARRAY_BUFFER, corners), this.fill(gl.ELEMENT_ARRAY_BUFFER, indices),
    ];
    for (const place of [0, 1]) {
      gl.enableVertexAttribArray(place);
      gl.vertexAttribIPointer(place, 4, gl.UNSIGNED_BYTE, FACE, 4 * place);
    }
    return { array, buffers, side, count: 6 * count };
  }

  fill(target, values) {
    const buffer = this.gl.createBuffer();
    this.gl.bindBuffer(target, buffer);
    this.gl.bufferData(target, values, this.gl.STATIC_DRAW);
    return buffer;
  }

  unload({ array, buffers }) {
    this.gl.deleteVertexArray(array);
    for (const buffer of buffers) this.gl.deleteBuffer(buffer);
  }

  draw(meshes, camera, colours) {
    const { gl } = this, { width, height } = gl.canvas;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniformMatrix4fv(this.uniform("matrix"), false, camera.matrix(width, height));
    gl.uniform3fv(this.uniform("eye"), camera.eye());
    gl.uniform3fv(this.uniform("colours"), colours.flat().map((part) => part / 255));
    for (const mesh of meshes) {
      gl.clear(gl.DEPTH_BUFFER_BIT); // what comes later lies in front
      gl.uniform1f(this.uniform("side"), mesh.side);
      gl.bindVertexArray(mesh.array);
      gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
    }
  }
}

class CanvasPainter {
  constructor(canvas) { this.context = canvas.getContext("2d"); }

  load(faces, side) { return { faces, side }; }

  unload() {}

  draw(meshes, camera, colours) {
    const { context } = this, { width, height } = context.canvas;
    context.clearRect(0, 0, width, height);
    context.lineWidth = Math.max(0.6, Math.min(width, height) / 1200);
    const matrix = camera.matrix(width, height), eye = camera.eye();
    for (const { faces, side } of meshes)
      for (const start of this.order(faces, side, eye)) {
        const [red, green, blue] = this.colour(faces, start, colours);
        context.fillStyle = `rgb(${red},${green},${blue})`;
        const edge = faces[start + 4] === KIND.box ? LINE / 2 : LINE;
        context.strokeStyle = `rgb(${red * (1 - edge)},${green * (1 - edge)},${blue * (1 - edge)})`;
        this.outline(matrix, faces, start, side);
        context.fill();
        context.stroke();
      }
  }

  // Return where the faces that can be seen start, the farthest cell first. A cell that hides
  // another one is nearer in every axis, so the distance of their middles tells which it is.
  order(faces, side, eye) {
    const seen = [], far = new Float32Array(faces.length / FACE);
    for (let start = 0; start < faces.length; start += FACE) {
      const axis = faces[start + 3] >> 1, back = faces[start + 3] & 1;
      const plane = (faces[start + axis] + 1 - back) / side - 0.5;
      const facing = back ? eye[axis] < plane : eye[axis] > plane;
      if (facing === (faces[start + 4] === KIND.box)) continue;
      let squares = 0;
      for (let i = 0; i < 3; i++) squares += ((faces[start + i] + 0.5) / side - 0.5 - eye[i]) ** 2;
      far[start / FACE] = squares;
      seen.push(start);
    }
    return seen.sort((a, b) => far[b / FACE] - far[a / FACE]);
  }

  colour(faces, start, colours) {
    const kind = faces[start + 4], light = faces[start + 5];
    const sum = (light & 3) + ((light >> 2) & 3) + ((light >> 4) & 3) + (light >> 6);
    const shade = kind === KIND.box ? 1 : SHADE[faces[start + 3]];
    const bright = shade * (LEAST_LIGHT + ((1 - LEAST_LIGHT) / 12) * sum);
    return colours[kind].map((part) => part * bright);
  }

  outline(matrix, faces, start, side) {
    const { context } = this, { width, height } = context.canvas, axis = faces[start + 3] >> 1;
    context.beginPath();
    for (const corner of [0, 1, 3, 2]) {
      const point = [faces[start], faces[start + 1], faces[start + 2]];
      point[axis] += 1 - (faces[start + 3] & 1);
      point[(axis + 1) % 3] += corner & 1;
      point[(axis + 2) % 3] += corner >> 1;
      const [x, y, z] = point.map((part) => part / side - 0.5);
      const clip = [0, 1, 3].map(
        (row) => matrix[row] * x + matrix[4 + row] * y + matrix[8 + row] * z + matrix[12 + row],
      );
      context.lineTo((clip[0] / clip[2] + 1) * width / 2, (1 - clip[1] / clip[2]) * height / 2);
    }
    context.closePath();
  }
}
