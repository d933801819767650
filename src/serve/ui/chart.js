
// ---- charts: drawn by hand, told apart by dashes as well as by colour, and said in words

// A round number that is not less: 1, 2 or 5 times a power of ten.
function roundUp(v) {
    if (!(v > 0) || !Number.isFinite(v)) return 1;
    const power = 10 ** Math.floor(Math.log10(v));
    return [1, 2, 5, 10].map((m) => m * power).find((m) => m >= v * 0.999999);
}

// The same for bytes, whose units are powers of 1,024.
function roundBytes(v) {
    const unit = v > 0 ? 1024 ** Math.floor(Math.log2(v) / 10) : 1;
    return unit * roundUp(v / unit);
}

const W = 420, H = 170, LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 22;

// series: [{ name, points: [[seconds, value]] }]; a value that is NaN leaves a gap.
function lineChart(title, series, format, most) {
    const all = series.flatMap(({ points }) => points).filter(([, v]) => Number.isFinite(v));
    const end = Math.max(0, ...series.flatMap(({ points }) => points.map(([t]) => t)));
    const begin = Math.min(end - 60, ...all.map(([t]) => t));
    const high = most || (format === bytes ? roundBytes : roundUp)(Math.max(0, ...all.map(([, v]) => v)));
    const x = (t) => LEFT + (W - LEFT - RIGHT) * (t - begin) / (end - begin);
    const y = (v) => H - BOTTOM - (H - TOP - BOTTOM) * Math.min(1, v / high);
    const said = series.map(({ name, points }) => {
        const values = points.map(([, v]) => v).filter(Number.isFinite);
        if (!values.length) return { name, words: 'nothing yet' };
        const last = points[points.length - 1][1];
        const mean = values.reduce((a, b) => a + b, 0) / values.length;
        return { name, words: `now ${format(last)}, mean ${format(mean)}, most ${format(Math.max(...values))}` };
    });
    const words = said.map((s) => `${s.name} ${s.words}`).join('; ');
    const drawing = svg('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img',
        'aria-label': `${title}, the last ${seconds(end - begin)}: ${words}` });
    for (const v of [0, high / 2, high]) {
        drawing.append(svg('line', { class: 'grid', x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }),
            svg('text', { x: LEFT - 5, y: y(v) + 4, 'text-anchor': 'end' }, format(v)));
    }
    drawing.append(svg('text', { x: LEFT, y: H - 6 }, `${seconds(end - begin)} ago`),
        svg('text', { x: W - RIGHT, y: H - 6, 'text-anchor': 'end' }, 'now'));
    series.forEach(({ points }, i) => {
        let d = '', down = false;
        for (const [t, v] of points) {
            if (Number.isFinite(v)) d += `${down ? 'L' : 'M'}${x(t).toFixed(1)} ${y(v).toFixed(1)}`;
            down = Number.isFinite(v);
        }
        if (d) drawing.append(svg('path', { class: 's' + i, d }));
    });
    const legend = said.map((s, i) => el('span', {},
        svg('svg', { viewBox: '0 0 26 8', 'aria-hidden': 'true' }, svg('path', { class: 's' + i, d: 'M0 4H26' })),
        `${s.name}: ${s.words}`));
    return el('figure', {}, el('figcaption', {}, el('strong', {}, title), el('br'), legend), drawing);
}

// rows: [{ name, values: [..] }], a bar for each value, with its number beside it.
function barChart(title, names, rows, format) {
    const all = rows.flatMap(({ values }) => values).filter((v) => Number.isFinite(v) && v >= 0);
    if (!all.length) return null;
    const high = Math.max(...all) || 1;
    const longest = Math.max(...rows.map(({ name }) => name.length));
    const line = 15 * names.length + 5, left = 8 + 7 * Math.min(28, longest);
    const width = 640, room = width - left - 90;
    const drawing = svg('svg', { viewBox: `0 0 ${width} ${rows.length * line + 4}`, role: 'img',
        'aria-label': `${title}: from ${format(Math.min(...all))} to ${format(high)}. The numbers are in the table.` });
    rows.forEach(({ name, values }, r) => {
        drawing.append(svg('text', { x: left - 6, y: r * line + 13, 'text-anchor': 'end' }, name.slice(0, 28)));
        values.forEach((v, i) => {
            if (!Number.isFinite(v)) return;
            const y = r * line + 15 * i + 3, w = Math.max(1, room * Math.max(0, v) / high);
            drawing.append(svg('rect', { class: i ? 'bar two' : 'bar', x: left, y, width: w.toFixed(1), height: 12 }),
                svg('text', { x: left + w + 5, y: y + 10 }, format(v)));
        });
    });
    const legend = names.length < 2 ? null : el('span', { class: 'legend' }, names.map((name, i) =>
        el('span', {}, svg('svg', { viewBox: '0 0 26 8', 'aria-hidden': 'true' },
            svg('rect', { class: i ? 'bar two' : 'bar', width: 26, height: 8 })), name)));
    return el('figure', { class: 'bars' }, el('figcaption', {}, el('strong', {}, title), legend), drawing);
}
