
// ---- main: which view is shown, the theme, the keys, and whether the server is there

const KEYS = [
    { key: 'Esc', does: 'stop the answer that is being written' },
    { key: 'Enter', does: 'in the message: send it' },
    { key: 'Shift+Enter', does: 'in the message: start a line' },
    { key: '/', does: 'go to the message', run() { location.hash = '#chat'; main.route(); $('message').focus(); } },
    { key: '1', does: 'show the chat', run() { location.hash = '#chat'; } },
    { key: '2', does: 'show the dashboard', run() { location.hash = '#dashboard'; } },
    { key: '3', does: 'show the quality report', run() { location.hash = '#report'; } },
    { key: 'r', does: 'generate the last answer again', run() { chat.regenerate(); } },
    { key: 'c', does: 'copy the last answer', run: async () => {
        const last = chat.messages.findLast((m) => m.role === 'assistant');
        if (last) aloud.say(await copy(last.content) ? 'Copied.' : 'Not copied.');
    } },
    { key: 'n', does: 'put the conversation away and start a new one', run() { chat.clear(); } },
    { key: '?', does: 'show these keys', run() { main.help(); } },
];

const main = {
    view: '', model: '', context: 0, alive: null,

    start() {
        this.theme();
        settings.start();
        chat.start();
        for (const { key, does } of KEYS)
            $('keys').append(el('tr', {}, el('td', {}, el('kbd', {}, key)), el('td', {}, does)));
        const single = $('single-keys');
        single.checked = kept.get(localStorage, 'single-keys') !== false;
        single.addEventListener('change', () => kept.set(localStorage, 'single-keys', single.checked));
        $('help-open').addEventListener('click', () => this.help());
        $('help-close').addEventListener('click', () => $('help').close());
        document.addEventListener('keydown', (event) => this.pressed(event));
        addEventListener('hashchange', () => this.route(true));
        this.route();
        dashboard.start();
        this.look();
    },

    theme() {
        const choice = kept.get(localStorage, 'theme');
        const system = matchMedia('(prefers-color-scheme: dark)');
        if (choice === 'light' || choice === 'dark') $('theme').value = choice;
        const set = () => {
            const value = $('theme').value;
            const own = system.matches ? 'dark' : 'light';
            document.documentElement.dataset.theme = value === 'system' ? own : value;
        };
        $('theme').addEventListener('change', () => {
            kept.set(localStorage, 'theme', $('theme').value);
            set();
        });
        system.addEventListener('change', set);
        set();
    },

    route(moved) {
        const view = ['chat', 'dashboard', 'report'].find((name) => location.hash === '#' + name) || 'chat';
        if (location.hash === '#main' && this.view) return; // the link that skips to the content
        const changed = view !== this.view;
        this.view = view;
        for (const name of ['chat', 'dashboard', 'report']) $('view-' + name).hidden = name !== view;
        for (const a of document.querySelectorAll('nav a')) {
            if (a.hash === '#' + view) a.setAttribute('aria-current', 'page');
            else a.removeAttribute('aria-current');
        }
        document.title = { chat: 'Chat', dashboard: 'Dashboard', report: 'Quality' }[view] + ' \u2013 nibble';
        if (moved && changed) $('title-' + view).focus();
        if (view === 'dashboard') {
            dashboard.show();
            dashboard.look();
        }
        if (view === 'report') report.look();
    },

    help() {
        if (!$('help').open) $('help').showModal();
    },

    pressed(event) {
        if (event.key === 'Escape' && chat.running && !$('help').open && !event.isComposing) {
            chat.stop();
            event.preventDefault();
            return;
        }
        if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || $('help').open) return;
        if (!$('single-keys').checked || event.target.closest('input, textarea, select')) return;
        const found = KEYS.find(({ key, run }) => run && key === event.key);
        if (!found) return;
        event.preventDefault();
        found.run();
    },

    // Which model this is. Asked for again after a key was given, or once the server is back.
    async look() {
        try {
            const models = await (await read('v1/models')).json();
            const first = models && Array.isArray(models.data) ? models.data[0] : null;
            this.model = first && typeof first.id === 'string' ? first.id : '';
            this.context = first && Number.isFinite(first.max_model_len) ? first.max_model_len : 0;
            put($('model'), this.model.slice(0, 200));
            $('model').title = this.model;
        } catch { /* /metrics, which is read at the same time, says what is wrong */ }
    },

    reached(yes, trouble) {
        const back = this.alive === false && yes;
        this.alive = yes;
        put($('state'), yes ? (trouble || 'connected') : trouble);
        if (back) this.look();
    },
};

main.start();
