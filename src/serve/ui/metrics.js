
// ---- metrics: Prometheus's text format, and percentiles from the histograms in it

// Samples by name: Map of [{ labels: Map, value }]. Lines that are none are left out.
function parseMetrics(text) {
    const out = new Map();
    const sample = /^([A-Za-z_:][\w:]*)(\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+(\S+)/;
    const label = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
    for (const line of text.split('\n')) {
        const m = line.length < 10000 && line[0] !== '#' ? sample.exec(line) : null;
        if (!m) continue;
        const labels = new Map();
        for (const l of (m[2] || '').matchAll(label))
            labels.set(l[1], l[2].replace(/\\(.)/g, (_, c) => c === 'n' ? '\n' : c));
        const word = m[3].toLowerCase();
        const value = /^[+]?inf/.test(word) ? Infinity : word.startsWith('-inf') ? -Infinity : Number(word);
        if (!out.has(m[1])) out.set(m[1], []);
        out.get(m[1]).push({ labels, value });
    }
    return out;
}

// The sum over all label sets of the first of `names` that is there; NaN if none is.
function total(metrics, ...names) {
    for (const name of names) {
        const found = metrics.get(name);
        if (found) return found.reduce((sum, { value }) => sum + value, 0);
    }
    return NaN;
}

function byLabel(metrics, name, label) {
    const out = new Map();
    for (const { labels, value } of metrics.get(name) || [])
        out.set(labels.get(label) || '', (out.get(labels.get(label) || '') || 0) + value);
    return out;
}

// { le: bounds ascending, n: cumulative counts, sum }, over all label sets; null if none.
function histogram(metrics, name) {
    const found = metrics.get(name + '_bucket');
    if (!found) return null;
    const at = new Map();
    for (const { labels, value } of found) {
        const text = labels.get('le') || '', le = text === '+Inf' ? Infinity : Number(text);
        if (text && !Number.isNaN(le)) at.set(le, (at.get(le) || 0) + value);
    }
    const le = [...at.keys()].sort((a, b) => a - b);
    return { le, n: le.map((bound) => at.get(bound)), sum: total(metrics, name + '_sum') };
}

// What came between two readings. A histogram that shrank belongs to another run of the server.
function since(now, before) {
    if (!now || !before || before.le.length !== now.le.length) return now;
    return { le: now.le, n: now.n.map((n, i) => Math.max(0, n - before.n[i])), sum: now.sum - before.sum };
}

// The q-quantile, on a straight line within its bucket, as Prometheus's histogram_quantile has it.
// `over`: it is past the last bound, and all that is known is that it is not less.
function quantile(h, q) {
    const n = h ? h.n[h.n.length - 1] : 0;
    if (!(n > 0)) return { value: NaN, over: false };
    const rank = q * n;
    const i = h.n.findIndex((cumulative) => cumulative >= rank && cumulative > 0);
    if (h.le[i] === Infinity) return { value: i > 0 ? h.le[i - 1] : NaN, over: true };
    const low = i > 0 ? h.le[i - 1] : 0, under = i > 0 ? h.n[i - 1] : 0;
    const share = h.n[i] > under ? (rank - under) / (h.n[i] - under) : 1;
    return { value: low + (h.le[i] - low) * share, over: false };
}
