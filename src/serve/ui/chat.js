
// ---- chat: the conversation, and one answer at a time

const NUMBERS = [
    { key: 'temperature', label: 'temperature', min: 0, max: 2, step: 0.05 },
    { key: 'top_p', label: 'top_p', min: 0.01, max: 1, step: 0.01 },
    { key: 'top_k', label: 'top_k', min: 0, max: 100000, step: 1 },
    { key: 'min_p', label: 'min_p', min: 0, max: 1, step: 0.01 },
    { key: 'max_tokens', label: 'max_tokens', min: 1, max: 10000000, step: 1 },
    { key: 'seed', label: 'seed', min: 0, max: 2147483647, step: 1 },
    { key: 'repetition_penalty', label: 'repetition', min: 0.05, max: 2, step: 0.05 },
    { key: 'presence_penalty', label: 'presence', min: -2, max: 2, step: 0.1 },
    { key: 'frequency_penalty', label: 'frequency', min: -2, max: 2, step: 0.1 },
];

const settings = {
    fields: ['system', 'stop-texts', 'as-json', 'as-text', 'aloud'],

    start() {
        const stored = kept.get(localStorage, 'settings') || {};
        for (const { key, label, min, max, step } of NUMBERS) {
            $('numbers').append(el('label', {}, label,
                el('input', { id: 'n-' + key, type: 'number', min, max, step: step < 1 ? 'any' : 1,
                    inputmode: 'decimal', autocomplete: 'off', 'aria-label': `${label}, from ${min} to ${max}` })));
        }
        for (const id of this.ids()) {
            const field = $(id), value = stored[id];
            if (field.type === 'checkbox') field.checked = value === true;
            else if (typeof value === 'string' && value) field.value = value;
            if (field.tagName === 'SELECT' && !field.value) field.selectedIndex = 0;
        }
        $('key').value = api.key;
        $('settings-form').addEventListener('input', () => this.store());
        $('settings-form').addEventListener('submit', (event) => event.preventDefault());
        $('key').addEventListener('change', () => main.look());
        $('reset').addEventListener('click', () => {
            for (const id of this.ids()) {
                const field = $(id);
                if (field.type === 'checkbox') field.checked = false;
                else if (field.tagName === 'SELECT') field.selectedIndex = 0;
                else field.value = '';
            }
            this.store();
        });
    },

    ids() {
        return [...this.fields, ...NUMBERS.map(({ key }) => 'n-' + key)];
    },

    store() {
        const stored = {};
        for (const id of this.ids()) stored[id] = $(id).type === 'checkbox' ? $(id).checked : $(id).value;
        kept.set(localStorage, 'settings', stored);
        api.key = $('key').value.trim();
        kept.set(sessionStorage, 'key', api.key);
    },

    // What goes into a request. Throws a Refusal for a number that the field does not allow.
    body() {
        const body = {};
        for (const { key, label, min, max } of NUMBERS) {
            const field = $('n-' + key);
            if (!field.checkValidity()) {
                $('settings').open = true;
                field.focus();
                throw new Refusal(`${label} has to be a number from ${min} to ${max}` +
                    (field.step === '1' ? ', without a fraction.' : '.'), 400);
            }
            if (field.value !== '') body[key] = Number(field.value);
        }
        const stop = $('stop-texts').value.split('\n').filter((line) => line !== '');
        if (stop.length) body.stop = stop;
        if ($('as-json').checked) body.response_format = { type: 'json_object' };
        return body;
    },
};

// Tells a screen reader the answer in whole sentences, seconds apart, rather than each token.
const aloud = {
    waiting: '', timer: 0,

    start() {
        this.waiting = '';
        clearInterval(this.timer);
        this.timer = setInterval(() => this.tell(), 4000);
    },

    add(text) {
        if ($('aloud').value !== 'end') this.waiting += text;
    },

    tell() {
        if ($('aloud').value !== 'pieces') return;
        const found = this.waiting.match(/^[^]*[.!?:\u3002\uff01\uff1f](?=\s)|^[^]*\n/);
        const end = found ? found[0].length : 0;
        if (!end) return;
        this.say(this.cut(end));
        this.waiting = this.waiting.slice(end);
    },

    // Marks are not read out; what is longer than anybody would listen to is left to be read.
    cut(end) {
        const text = this.waiting.slice(0, Math.min(end, 2000)).replace(/[*_`#|]+/g, '').trim();
        return end > 2000 ? text + ' \u2026 and more' : text;
    },

    say(...texts) {
        $('spoken').replaceChildren(...texts.filter(Boolean).map((text) => el('p', {}, text)));
    },

    end(last) {
        clearInterval(this.timer);
        this.say(this.cut(this.waiting.length), last);
        this.waiting = '';
    },
};

const chat = {
    messages: [],   // { role, content, note }
    running: null,  // { abort, message }
    cleared: null,  // what New chat took away

    start() {
        const stored = kept.get(sessionStorage, 'chat');
        if (Array.isArray(stored)) {
            for (const m of stored) {
                if (!m || (m.role !== 'user' && m.role !== 'assistant') || typeof m.content !== 'string') continue;
                const note = typeof m.note === 'string' ? m.note : '';
                this.messages.push({ role: m.role, content: m.content, note });
            }
        }
        this.show();
        $('composer').addEventListener('submit', (event) => {
            event.preventDefault();
            this.send();
        });
        $('message').addEventListener('keydown', (event) => {
            if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            this.send();
        });
        $('message').addEventListener('input', () => this.grow());
        $('stop').addEventListener('click', () => this.stop());
        $('regenerate').addEventListener('click', () => this.regenerate());
        $('new').addEventListener('click', () => this.clear());
    },

    grow() {
        const box = $('message');
        box.style.height = 'auto';
        box.style.height = Math.min(box.scrollHeight + 4, innerHeight / 3) + 'px';
    },

    keep() {
        kept.set(sessionStorage, 'chat', this.messages.map(({ role, content, note }) => ({ role, content, note })));
    },

    // ---- what is shown

    show() {
        $('log').replaceChildren(...this.messages.map((message) => this.build(message)));
        this.buttons();
    },

    build(message) {
        const mine = message.role === 'user';
        const said = el('div', { class: 'said' });
        const tools = el('div', { class: 'row' },
            copyButton(() => message.content, mine ? 'Copy your message' : 'Copy the answer'));
        if (mine) {
            tools.append(el('button', { type: 'button', class: 'small', on: { click: () => this.edit(message) },
                'aria-label': 'Edit your message and go on from there' }, 'Edit'));
        }
        message.foot = el('footer', {}, message.note || '');
        message.said = said;
        message.node = el('li', {}, el('article', { class: message.role },
            el('header', {}, el('h3', {}, mine ? 'You' : 'Answer'), tools), said, message.foot));
        const writer = mine || $('as-text').checked ? new Plain(said) : new Markdown(said);
        if (message.content) writer.write(message.content);
        if (message === (this.running && this.running.message)) message.writer = writer;
        else writer.end();
        return message.node;
    },

    buttons() {
        const last = this.messages[this.messages.length - 1];
        const idle = !this.running;
        $('send').hidden = !idle;
        $('stop').hidden = idle;
        $('regenerate').disabled = !idle || !last;
        $('new').disabled = !last;
        $('empty').hidden = Boolean(last);
    },

    problem(words, action, label) {
        const box = $('problem');
        box.hidden = !words;
        box.replaceChildren(words || '');
        if (action) box.append(el('button', { type: 'button', class: 'small', on: { click: action } }, label));
    },

    // Whoever reads the end keeps reading the end; whoever scrolled up is left alone.
    following() {
        const page = document.documentElement;
        return page.scrollHeight - page.scrollTop - page.clientHeight < 120;
    },

    follow() {
        document.documentElement.scrollTop = document.documentElement.scrollHeight;
    },

    // ---- what is done

    send() {
        const text = $('message').value;
        if (this.running || !text.trim()) return;
        let body;
        try { body = settings.body(); } catch (error) { this.problem(error.message); return; }
        const message = { role: 'user', content: text, note: '' };
        this.messages.push(message);
        $('log').append(this.build(message));
        $('message').value = '';
        this.grow();
        this.answer(body);
    },

    regenerate() {
        if (this.running || !this.messages.length) return;
        let body;
        try { body = settings.body(); } catch (error) { this.problem(error.message); return; }
        if (this.messages[this.messages.length - 1].role === 'assistant') this.messages.pop().node.remove();
        if (this.messages.length) this.answer(body);
        else this.buttons();
    },

    edit(message) {
        if (this.running) this.stop();
        const at = this.messages.indexOf(message);
        if (at < 0) return;
        for (const gone of this.messages.splice(at)) gone.node.remove();
        $('message').value = message.content;
        this.grow();
        this.buttons();
        this.keep();
        $('message').focus();
    },

    clear() {
        if (this.running) this.stop();
        this.cleared = this.messages;
        this.messages = [];
        this.show();
        this.keep();
        this.problem('');
        const undo = el('button', { type: 'button', class: 'small', on: { click: () => {
            this.messages = this.cleared;
            this.show();
            this.keep();
            $('message').focus();
            put($('empty'), '');
        } } }, 'Bring it back');
        if (this.cleared.length) $('empty').replaceChildren('The conversation was put away. ', undo);
        $('message').focus();
    },

    stop() {
        if (this.running) this.running.abort.abort();
    },

    async answer(body) {
        this.problem('');
        const abort = new AbortController();
        const message = { role: 'assistant', content: '', note: '' };
        const history = this.messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
        const system = $('system').value;
        if (system.trim()) history.unshift({ role: 'system', content: system });
        this.running = { abort, message };
        this.messages.push(message);
        $('log').append(this.build(message));
        message.said.classList.add('writing');
        message.node.firstChild.setAttribute('aria-busy', 'true');
        this.buttons();
        if (document.activeElement === document.body) $('stop').focus();
        this.follow();
        aloud.start();
        aloud.say('The answer is being written.');

        const began = performance.now();
        let first = 0, latest = 0, pieces = 0, waiting = '', timer = 0, took = 0;
        const draw = () => {
            timer = 0;
            const at = performance.now(), following = this.following();
            message.writer.write(waiting);
            waiting = '';
            put(message.foot, this.figures(first - began, latest - first, pieces, null));
            if (following) this.follow();
            took = performance.now() - at;
        };
        const told = ({ text }) => {
            latest = performance.now();
            first = first || latest;
            pieces++;
            message.content += text;
            waiting += text;
            aloud.add(text);
            // Drawing may cost more than its share where a page is long: it then comes less often.
            if (!timer) timer = setTimeout(draw, Math.min(1000, Math.max(30, 3 * took)));
        };
        let ended = '', refusal = null, usage = null;
        try {
            const request = { ...body, model: main.model || undefined, messages: history, stream: true,
                stream_options: { include_usage: true } };
            const result = await stream(request, abort.signal, told);
            usage = result.usage;
            if (result.finish === 'length') ended = 'cut at the length allowed';
            else if (result.finish && result.finish !== 'stop') ended = 'ended: ' + result.finish.slice(0, 40);
        } catch (error) {
            if (error.name === 'AbortError') ended = 'stopped by you';
            else refusal = error;
        }
        clearTimeout(timer);
        if (waiting) draw();
        message.writer.end();
        message.writer = null;
        message.said.classList.remove('writing');
        message.node.firstChild.removeAttribute('aria-busy');
        this.running = null;
        const at_stop = document.activeElement === $('stop');
        if (refusal) ended = 'not complete';
        const figures = this.figures(first - began, latest - first, pieces, usage);
        message.note = [figures, ended].filter(Boolean).join(' \u00b7 ');
        put(message.foot, message.note);
        const listed = this.messages.includes(message);
        if (listed && !message.content) {
            this.messages.splice(this.messages.indexOf(message), 1);
            message.node.remove();
        }
        if (listed) this.keep();
        this.buttons();
        if (at_stop) $('message').focus();
        aloud.end(refusal ? '' : `The answer is ${ended || 'complete'}.`);
        if (refusal && listed) {
            this.problem(refusal.message, () => this.regenerate(), 'Try again');
            if (refusal.status === 401) {
                $('settings').open = true;
                $('key').focus();
            }
        } else if (listed && !message.content) {
            this.problem(ended ? 'The answer was ' + ended + ' before its first word.' : 'The answer is empty.',
                () => this.regenerate(), 'Try again');
        }
        main.look();
    },

    // "31 tokens, 24.5 tokens/s, first after 120 ms, prompt 52 tokens (48 of them cached)"
    figures(first, rest, pieces, usage) {
        if (!(first > 0)) return '';
        const made = usage && Number.isFinite(usage.completion_tokens) ? usage.completion_tokens : null;
        const n = made === null ? pieces : made;
        const parts = [`${made === null ? 'about ' : ''}${count(n)} token${n === 1 ? '' : 's'}`];
        if (n > 1 && rest > 0) parts.push(`${count((n - 1) / rest * 1000, 1)} tokens/s`);
        parts.push(`first after ${seconds(first / 1000)}`);
        if (usage && Number.isFinite(usage.prompt_tokens)) {
            const details = usage.prompt_tokens_details;
            const cached = details && Number.isFinite(details.cached_tokens) && details.cached_tokens > 0
                ? ` (${count(details.cached_tokens)} of them cached)` : '';
            parts.push(`prompt ${count(usage.prompt_tokens)} tokens${cached}`);
            if (main.context && made !== null)
                parts.push(`${count(usage.prompt_tokens + made)} of ${count(main.context)} of the context used`);
        }
        return parts.join(', ');
    },
};
