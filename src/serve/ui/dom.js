
// The page is put together from these pieces, in the order of cmake/page.cmake; they share one
// module scope.
//
// ---- dom: elements from data. Text only ever becomes text nodes: nothing here turns a string into
// markup, and the page's policy (trusted-types 'none') makes browsers refuse to.

const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
        if (name === 'on') {
            for (const [type, handler] of Object.entries(value)) node.addEventListener(type, handler);
        } else if (value !== undefined && value !== null && value !== false) {
            node.setAttribute(name, value === true ? '' : value);
        }
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
}

function el(tag, attributes, ...children) {
    return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
    return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

// Replaces a text only where it differs: a status that is written anew is read out anew.
function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

// What the browser keeps may be refused (private windows) or full: the page then forgets, and works.
const kept = {
    get(store, key) {
        try { return JSON.parse(store.getItem('nibble.' + key)); } catch { return null; }
    },
    set(store, key, value) {
        try { store.setItem('nibble.' + key, JSON.stringify(value)); } catch { /* forgets */ }
    },
};

async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch { /* not a secure origin: by hand */ }
    const box = el('textarea', { class: 'unseen', 'aria-hidden': 'true', tabindex: -1 });
    const back = document.activeElement;
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand('copy');
    box.remove();
    if (back) back.focus();
    return done;
}

function copyButton(text, label) {
    const button = el('button', { type: 'button', class: 'small', 'aria-label': label }, 'Copy');
    button.addEventListener('click', async () => {
        put(button, await copy(text()) ? 'Copied' : 'Not copied');
        setTimeout(() => put(button, 'Copy'), 2000);
    });
    return button;
}

// rows: texts; the first of each names its row. Without heads, a table of facts.
function tableOf(caption, heads, rows) {
    const head = heads && heads.map((text, i) => el('th', { scope: 'col', class: i ? null : 't' }, text));
    const cell = (text, i) => i ? el('td', { class: heads ? null : 't' }, text) : el('th', { scope: 'row' }, text);
    return el('table', { class: heads ? null : 'facts' }, el('caption', {}, caption),
        head && el('thead', {}, el('tr', {}, head)),
        el('tbody', {}, rows.map((row) => el('tr', {}, row.map(cell)))));
}

// ---- numbers as they are shown; anything that is no finite number is a dash

const DASH = '\u2013';

function count(v, digits = 0) {
    if (typeof v !== 'number' || !Number.isFinite(v)) return DASH;
    if (Math.abs(v) >= 1e15) return v.toExponential(2);
    return v.toLocaleString('en', { maximumFractionDigits: digits });
}

function digits(v, n = 4) {
    if (typeof v !== 'number' || !Number.isFinite(v)) return DASH;
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e9)) return v.toExponential(n - 2);
    return String(Number(v.toPrecision(n)));
}

function percent(v) {
    return Number.isFinite(v) ? count(100 * v, v < 0.1 ? 2 : 1) + ' %' : DASH;
}

function bytes(v) {
    if (typeof v !== 'number' || !Number.isFinite(v)) return DASH;
    let unit = 0;
    for (; Math.abs(v) >= 1024 && unit < 4; unit++) v /= 1024;
    return count(v, unit ? 1 : 0) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit];
}

function seconds(v) {
    if (typeof v !== 'number' || !Number.isFinite(v) || v < 0) return DASH;
    if (v === 0) return '0 s';
    if (v < 0.9995e-3) return count(v * 1e6) + ' \u00b5s';
    if (v < 0.9995) return count(v * 1e3, v < 0.1 ? 1 : 0) + ' ms';
    if (v < 120) return count(v, v < 10 ? 2 : 1) + ' s';
    if (v < 7200) return count(v / 60, 1) + ' min';
    return count(v / 3600, 1) + ' h';
}
