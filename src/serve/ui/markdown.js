
// ---- markdown: what models write, as elements. A part of Markdown: paragraphs, headings, lists,
// quotes, fenced code, tables; bold, italic, struck, code and links. No markup, no images, no
// addresses but http and https.
//
// Text comes in pieces. Blocks that are complete are built once; only the open one is built again,
// and it is cut at MOST_OPEN characters: the work for a piece is bounded, however long the answer or
// one line of it is.

const MOST_OPEN = 8192;
const MOST_NESTED = 8;

// Characters that change the order of what is read, but leave no mark. In code they could make it
// look like other code, so they are shown there; elsewhere every block is isolated from the rest.
const CONTROLS = /[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c\u200b\u2060\ufeff\u0000-\u0008\u000e-\u001f\u007f]/;

function codeText(text) {
    const out = [];
    for (const part of text.split(new RegExp(`(${CONTROLS.source})`))) {
        if (!part) continue;
        if (part.length === 1 && CONTROLS.test(part)) {
            const name = 'U+' + part.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0');
            out.push(el('span', { class: 'control', title: 'an invisible character' }, name));
        } else {
            out.push(part);
        }
    }
    return out;
}

// A link says where it leads if its text does not: a model may have been told to lie about that.
function link(text, address) {
    let url;
    try { url = new URL(address); } catch { return null; }
    if (url.protocol !== 'http:' && url.protocol !== 'https:') return null;
    const a = el('a', { href: url.href, target: '_blank', rel: 'noopener noreferrer nofollow', dir: 'auto' }, text);
    return text === address ? [a] : [a, el('span', { class: 'host' }, ` (${url.host})`)];
}

const MARKS = { '**': 'strong', '__': 'strong', '*': 'em', '_': 'em', '~~': 's' };

// Text inside a block. One pass: an opening mark starts a frame, a closing one turns the frame into
// an element; frames that nothing closes become text again.
function inline(text) {
    const frames = [{ mark: '', nodes: [] }];
    const unclosed = new Set(); // runs of backticks that nothing ends
    let plain = '';
    const top = () => frames[frames.length - 1];
    const flush = () => { if (plain) top().nodes.push(plain); plain = ''; };
    const add = (nodes) => { flush(); top().nodes.push(...nodes); };
    const unwind = (depth) => {
        flush();
        while (frames.length > depth) {
            const frame = frames.pop();
            top().nodes.push(frame.mark, ...frame.nodes);
        }
    };
    const named = /\[([^[\]\n]{1,300})\]\((https?:\/\/[^\s()<>]{1,1000})\)/y;
    const bare = /https?:\/\/[^\s<>"'`()[\]]{1,1000}/y;
    for (let i = 0; i < text.length;) {
        const c = text[i];
        if (c === '\\' && i + 1 < text.length && /[!-/:-@[-`{-~]/.test(text[i + 1])) {
            plain += text[i + 1];
            i += 2;
            continue;
        }
        if (c === '`') {
            let end = i;
            while (text[end] === '`') end++;
            const run = text.slice(i, end);
            let close = unclosed.has(run.length) ? -1 : text.indexOf(run, end);
            while (close >= 0 && text[close + run.length] === '`') {
                let past = close + run.length;
                while (text[past] === '`') past++;
                close = text.indexOf(run, past);
            }
            if (close >= 0) {
                const code = text.slice(end, close);
                const padded = code.length > 2 && code.startsWith(' ') && code.endsWith(' ');
                add([el('code', { dir: 'auto' }, codeText(padded ? code.slice(1, -1) : code))]);
                i = close + run.length;
            } else {
                unclosed.add(run.length);
                plain += run;
                i = end;
            }
            continue;
        }
        if (c === '*' || c === '_' || (c === '~' && text[i + 1] === '~')) {
            const mark = text[i + 1] === c ? c + c : c;
            const before = i > 0 ? text[i - 1] : ' ', after = text[i + mark.length] || ' ';
            const depth = frames.findLastIndex((frame) => frame.mark === mark);
            const word = /[\p{L}\p{N}]/u;
            const closes = depth > 0 && !/\s/.test(before) && (c !== '_' || !word.test(after));
            const opens = !/\s/.test(after) && (c !== '_' || !word.test(before)) && frames.length <= MOST_NESTED;
            if (closes) {
                unwind(depth + 1);
                const frame = frames.pop();
                top().nodes.push(el(MARKS[mark], {}, frame.nodes));
            } else if (opens && depth < 0) {
                flush();
                frames.push({ mark, nodes: [] });
            } else {
                plain += mark;
            }
            i += mark.length;
            continue;
        }
        if (c === '[') {
            named.lastIndex = i;
            const found = named.exec(text), made = found && link(found[1], found[2]);
            if (made) {
                add(made);
                i = named.lastIndex;
                continue;
            }
        }
        if (c === 'h' && (i === 0 || !/\w/.test(text[i - 1]))) {
            bare.lastIndex = i;
            const found = bare.exec(text), address = found && found[0].replace(/[.,;:!?*_~]+$/, '');
            const made = address && link(address, address);
            if (made) {
                add(made);
                i += address.length;
                continue;
            }
        }
        plain += c;
        i++;
    }
    unwind(1);
    return frames[0].nodes;
}

function lines(texts) {
    const out = [];
    texts.forEach((text, i) => out.push(...(i ? [el('br')] : []), ...inline(text)));
    return out;
}

function cells(line) {
    return line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());
}

// What a line starts, when no block is open that takes it.
function startOf(line) {
    let m;
    if ((m = /^ {0,3}(`{3,}|~{3,})([^`]*)$/.exec(line)))
        return { kind: 'code', fence: m[1], language: m[2].trim(), lines: [] };
    if ((m = /^ {0,3}(#{1,6})\s+(\S.*)$/.exec(line)))
        return { kind: 'heading', level: m[1].length, lines: [m[2]], whole: true };
    if (/^ {0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) return { kind: 'rule', lines: [], whole: true };
    if ((m = /^ {0,3}>\s?(.*)$/.exec(line))) return { kind: 'quote', lines: [m[1]] };
    if (/^\s*([-*+]|\d{1,9}[.)])\s+\S/.test(line)) return { kind: 'list', lines: [line] };
    if (/^\s*\|.*\|\s*$/.test(line)) return { kind: 'table', lines: [line] };
    return { kind: 'text', lines: [line] };
}

const BUILD = {
    text: (block) => el('p', { dir: 'auto' }, lines(block.lines)),
    heading: (block) => el('h' + Math.min(6, block.level + 3), { dir: 'auto' }, inline(block.lines[0])),
    rule: () => el('hr'),
    quote: (block) => el('blockquote', { dir: 'auto' }, lines(block.lines)),
    list(block) {
        // Items by how far they are indented; a line that is no item goes on with the last one.
        const items = [];
        for (const line of block.lines) {
            const m = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/.exec(line);
            if (m) items.push({ indent: m[1].length, number: parseInt(m[2], 10), texts: [m[3]] });
            else items[items.length - 1].texts.push(line.trim());
        }
        const build = (from, indent, depth) => {
            const first = items[from];
            const list = Number.isNaN(first.number) ? el('ul') : el('ol', { start: first.number });
            let at = from;
            while (at < items.length && items[at].indent >= indent) {
                if (items[at].indent > indent + 1 && at > from && depth < MOST_NESTED) {
                    const [inner, next] = build(at, items[at].indent, depth + 1);
                    list.lastChild.append(inner);
                    at = next;
                } else {
                    list.append(el('li', { dir: 'auto' }, lines(items[at].texts)));
                    at++;
                }
            }
            return [list, at];
        };
        const out = [];
        for (let at = 0; at < items.length;) {
            const [list, next] = build(at, items[at].indent, 0);
            out.push(list);
            at = next;
        }
        return out.length === 1 ? out[0] : el('div', {}, out);
    },
    table(block) {
        if (block.lines.length < 2 || !/^[\s|:-]+$/.test(block.lines[1]) || !block.lines[1].includes('-'))
            return BUILD.text(block);
        const row = (line, tag) => el('tr', {},
            cells(line).slice(0, 64).map((cell) => el(tag, { dir: 'auto' }, inline(cell))));
        return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Table' },
            el('table', {}, el('thead', {}, row(block.lines[0], 'th')),
                el('tbody', {}, block.lines.slice(2).map((line) => row(line, 'td')))));
    },
    code(block) {
        const head = block.goes_on ? null : el('div', {}, el('span', {}, block.language.slice(0, 40) || 'code'));
        return el('div', { class: block.goes_on ? 'code cont' : 'code' }, head,
            el('pre', { tabindex: 0, dir: 'ltr', role: 'region', 'aria-label': 'Code' },
                el('code', {}, codeText(block.lines.join('\n')))));
    },
};

class Markdown {
    constructor(root) {
        this.root = root;
        this.rest = '';       // the line that is not complete
        this.within = false;  // its start was cut off and taken already
        this.open = null;     // the block that may go on
        this.size = 0;        // characters in it
        this.code = null;     // of the fenced block: its text over all pieces, and where a button goes
        this.tail = [];       // elements of what may still change
    }

    close() {
        if (!this.open) return;
        const block = this.open;
        this.open = null;
        this.size = 0;
        const node = BUILD[block.kind](block);
        this.root.append(node);
        if (block.kind === 'code' && !block.goes_on) this.code.head = node.firstChild;
    }

    endCode() {
        const { head, texts } = this.code;
        this.code = null;
        if (head) head.append(copyButton(() => texts.join(''), 'Copy this code'));
    }

    takeCode(line, end) {
        const open = this.open;
        const fence = this.within ? null : /^ {0,3}(`{3,}|~{3,})\s*$/.exec(line);
        if (fence && fence[1].startsWith(open.fence)) {
            this.close();
            this.endCode();
            return;
        }
        this.code.texts.push(line + end);
        if (this.size + line.length > MOST_OPEN && open.lines.length) {
            this.close();
            this.open = { kind: 'code', fence: open.fence, lines: [], goes_on: true };
        }
        this.open.lines.push(line);
        this.size += line.length + 1;
    }

    // A line, or the part of one that ends with ''.
    take(line, end) {
        const open = this.open;
        if (open && open.kind === 'code') {
            this.takeCode(line, end);
        } else if (!line.trim()) {
            this.close();
        } else {
            const start = this.within ? { kind: 'text', lines: [line] } : startOf(line);
            const alike = open && (start.kind === open.kind ||
                (start.kind === 'text' && (open.kind === 'list' || open.kind === 'quote')));
            const fits = this.size + line.length <= MOST_OPEN;
            if (alike && fits && !start.whole && start.kind !== 'code') {
                open.lines.push(...start.lines);
            } else {
                if (alike && open.kind === 'table') start.lines.unshift(...open.lines.slice(0, 2));
                this.close();
                this.open = start;
                if (start.kind === 'code') this.code = { texts: [], head: null };
            }
            this.size += line.length + 1;
            if (start.whole) this.close();
        }
        this.within = end === '';
    }

    // A line of any length: pieces end at a space, if there is one.
    takeAll(line, end) {
        while (line.length > MOST_OPEN) line = this.cut(line);
        this.take(line, end);
    }

    cut(line) {
        let at = line.lastIndexOf(' ', MOST_OPEN - 1) + 1;
        if (at < MOST_OPEN / 2) at = MOST_OPEN;
        if (/[\ud800-\udbff]/.test(line[at - 1])) at--;
        this.take(line.slice(0, at), '');
        return line.slice(at);
    }

    write(text) {
        for (const node of this.tail) node.remove();
        this.rest += text;
        let start = 0;
        for (let end; (end = this.rest.indexOf('\n', start)) >= 0; start = end + 1)
            this.takeAll(this.rest.slice(start, end).replace(/\r$/, ''), '\n');
        this.rest = this.rest.slice(start);
        while (this.rest.length > MOST_OPEN) this.rest = this.cut(this.rest);
        this.preview();
    }

    // Builds what would stand there if the text ended here, and remembers it for removal.
    preview() {
        const n_before = this.root.childNodes.length;
        const { open, size, code, within } = this;
        if (open) this.open = { ...open, lines: [...open.lines] };
        if (code) this.code = { texts: [], head: null };
        if (this.rest) this.take(this.rest, '\n');
        this.close();
        Object.assign(this, { open, size, code, within });
        this.tail = [...this.root.childNodes].slice(n_before);
    }

    end() {
        for (const node of this.tail) node.remove();
        this.tail = [];
        if (this.rest) this.takeAll(this.rest, '\n');
        this.rest = '';
        this.close();
        if (this.code) this.endCode();
    }
}

// The same for text that is shown as it is, in pieces of a bounded length for the same reason.
class Plain {
    constructor(root) {
        this.root = root;
        this.node = null;
    }

    write(text) {
        for (let at = 0; at < text.length;) {
            if (!this.node || this.node.length >= MOST_OPEN) {
                this.node = document.createTextNode('');
                this.root.append(el('div', { class: 'plain', dir: 'auto' }, this.node));
            }
            let end = Math.min(text.length, at + MOST_OPEN);
            if (/[\ud800-\udbff]/.test(text[end - 1]) && end < text.length) end++;
            const line = text.lastIndexOf('\n', end - 1);
            if (end < text.length && line > at + MOST_OPEN / 2) end = line + 1;
            this.node.appendData(text.slice(at, end));
            at = end;
        }
    }

    end() {}
}
