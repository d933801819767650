
// ---- dashboard: what the server measures of itself, read from its own /metrics

const LATENCIES = [
    { key: 'ttft', name: 'vllm:time_to_first_token_seconds', title: 'to the first token' },
    { key: 'itl', name: 'vllm:inter_token_latency_seconds', title: 'between tokens' },
    { key: 'e2e', name: 'vllm:e2e_request_latency_seconds', title: 'of a request, end to end' },
    { key: 'queue', name: 'vllm:request_queue_time_seconds', title: 'waiting in the queue' },
    { key: 'step', name: 'nibble:step_seconds', title: 'of a step of the engine' },
];

const ALERTS = {
    memory: 'Memory: more of it is in use than the alert allows.',
    quantization_error: 'Quality: the error of quantization is above what the alert allows.',
    latency: 'Latency: the 95th percentile is above what was promised.',
};

// One reading, down to what is shown: hours of them stay small.
function reduceMetrics(m) {
    const r = {
        made: total(m, 'vllm:generation_tokens_total'),
        read: total(m, 'vllm:prompt_tokens_total'),
        finished: total(m, 'vllm:request_success_total'),
        running: total(m, 'vllm:num_requests_running'),
        waiting: total(m, 'vllm:num_requests_waiting'),
        usage: total(m, 'vllm:kv_cache_usage_perc'),
        fragmentation: total(m, 'nibble:kv_fragmentation_ratio'),
        asked: total(m, 'vllm:prefix_cache_queries_total', 'vllm:prefix_cache_queries'),
        hits: total(m, 'vllm:prefix_cache_hits_total', 'vllm:prefix_cache_hits'),
        preempted: total(m, 'vllm:num_preemptions_total'),
        memory: total(m, 'process_resident_memory_bytes'),
        cpu: total(m, 'process_cpu_seconds_total'),
        files: total(m, 'process_open_fds'),
        started: total(m, 'process_start_time_seconds'),
        rejects: total(m, 'nibble:http_rejects_total'),
        gone: total(m, 'nibble:client_disconnects_total'),
        blocks: byLabel(m, 'nibble:kv_blocks', 'state'),
        reasons: byLabel(m, 'vllm:request_success_total', 'finished_reason'),
        alerts: byLabel(m, 'nibble:alert', 'name'),
    };
    for (const { key, name } of LATENCIES) r[key] = histogram(m, name);
    return r;
}

const dashboard = {
    samples: [],   // { t (seconds, of this page's clock), r }
    timer: 0, paused: false, reading: false, trouble: '',
    RATES: 5,      // seconds that a rate is taken over

    start() {
        $('pause').addEventListener('click', () => {
            this.paused = !this.paused;
            $('pause').setAttribute('aria-pressed', String(this.paused));
            if (!this.paused) this.look();
        });
        const stored = kept.get(localStorage, 'dashboard') || {};
        for (const id of ['window', 'period']) {
            if ([...$(id).options].some(({ value }) => value === stored[id])) $(id).value = stored[id];
            $(id).addEventListener('change', () => {
                kept.set(localStorage, 'dashboard', { window: $('window').value, period: $('period').value });
                this.show();
                this.plan();
            });
        }
        document.addEventListener('visibilitychange', () => { if (!document.hidden) this.look(); });
        this.look();
    },

    // Elsewhere on the page only alerts and the state of the server are of interest.
    plan() {
        clearTimeout(this.timer);
        const wait = main.view === 'dashboard' ? Number($('period').value) : 10;
        this.timer = setTimeout(() => this.look(), wait * 1000);
    },

    async look() {
        if (this.reading) return;
        clearTimeout(this.timer);
        if (!document.hidden && !this.paused) {
            this.reading = true;
            try {
                const text = await (await read('metrics', 'text/plain')).text();
                this.trouble = '';
                this.add(performance.now() / 1000, reduceMetrics(parseMetrics(text)));
            } catch (error) {
                this.trouble = error instanceof Refusal ? error.message : 'The server does not answer in time.';
            }
            this.reading = false;
            main.reached(!this.trouble, this.trouble);
            this.show();
        }
        this.plan();
    },

    add(t, r) {
        const last = this.samples[this.samples.length - 1];
        // Counters that fall: the server was started anew.
        if (last && (r.made < last.r.made || r.finished < last.r.finished || r.started > last.r.started + 1))
            this.samples = [];
        this.samples.push({ t, r });
        while (this.samples.length > 2 && (this.samples[1].t < t - 930 || this.samples.length > 1000))
            this.samples.shift();
    },

    // The latest sample that is at least `age` seconds older than number `at`, or the oldest.
    before(at, age) {
        let i = at;
        while (i > 0 && this.samples[at].t - this.samples[i].t < age) i--;
        return this.samples[i];
    },

    rate(at, key) {
        const now = this.samples[at], then = this.before(at, this.RATES);
        return now.t > then.t ? Math.max(0, now.r[key] - then.r[key]) / (now.t - then.t) : NaN;
    },

    over(at, key, age) {
        return age ? since(this.samples[at].r[key], this.before(at, age).r[key]) : this.samples[at].r[key];
    },

    show() {
        const n = this.samples.length;
        this.showAlerts();
        if (main.view !== 'dashboard') return;
        put($('dashboard-note'), this.trouble ? this.trouble + ' What stands here is what was read last.'
            : n === 0 ? 'Nothing read yet.' : '');
        if (n === 0) return;
        this.showTiles(n - 1);
        this.showLatency(n - 1);
        this.showCharts();
    },

    alerts() {
        const last = this.samples[this.samples.length - 1];
        if (!last) return [];
        return [...last.r.alerts].map(([name, value]) =>
            ({ name, on: value > 0, words: Object.hasOwn(ALERTS, name) ? ALERTS[name] : `Alert: ${name}` }));
    },

    showAlerts() {
        const alerts = this.alerts();
        // Only what changed is written: what is written is read out.
        const show = (box, nodes) => {
            const text = (all) => [...all].map((node) => node.textContent).join('\n');
            if (text(box.children) !== text(nodes)) box.replaceChildren(...nodes);
        };
        show($('alerts'), alerts.filter((a) => a.on).map((a) => el('p', {}, a.words)));
        show($('alert-list'), alerts.length
            ? alerts.map((a) => a.on ? el('li', { class: 'on' }, a.words) : el('li', {}, `${a.name}: no`))
            : [el('li', { class: 'soft' }, 'The server has not said anything of alerts.')]);
    },

    showTiles(at) {
        const { r } = this.samples[at];
        const then = this.before(at, Number($('window').value) || 1e9).r;
        const recent = Number($('window').value) && r.asked > then.asked;
        const hit = recent ? (r.hits - then.hits) / (r.asked - then.asked) : r.hits / r.asked;
        const blocks = [...r.blocks].map(([state, v]) => `${count(v)} ${state}`).join(', ');
        const reasons = [...r.reasons].map(([reason, v]) => `${count(v)} ${reason}`).join(', ');
        const tiles = [
            ['generated', `${count(this.rate(at, 'made'), 1)} tokens/s`, `${count(r.made)} in all`],
            ['prompts read', `${count(this.rate(at, 'read'), 1)} tokens/s`, `${count(r.read)} in all`],
            ['requests finished', count(r.finished), reasons],
            ['running', count(r.running), ''],
            ['waiting', count(r.waiting), ''],
            ['KV cache in use', percent(r.usage), blocks && `blocks: ${blocks}`],
            ['fragmentation', percent(r.fragmentation), 'of the blocks in use'],
            ['prefix hits', percent(hit), `${count(r.hits)} of ${count(r.asked)} tokens in all`],
            ['preemptions', count(r.preempted), ''],
            ['memory', bytes(r.memory), ''],
            ['processors', count(this.rate(at, 'cpu'), 2), 'busy for the server'],
            ['refused', count(r.rejects), 'requests'],
            ['clients that left', count(r.gone), ''],
            ['open files', count(r.files), ''],
            ['running for', seconds(Date.now() / 1000 - r.started), ''],
        ];
        const list = $('tiles');
        if (list.children.length !== tiles.length) {
            list.replaceChildren(...tiles.map(([title]) =>
                el('div', {}, el('dt', {}, title), el('dd', {}, el('span'), el('small')))));
        }
        tiles.forEach(([, value, more], i) => {
            const [span, small] = list.children[i].lastChild.children;
            put(span, value);
            put(small, more || '');
        });
    },

    showLatency(at) {
        const age = Number($('window').value);
        const shown = (h, q) => {
            const { value, over } = quantile(h, q);
            return (over ? 'over ' : '') + seconds(value);
        };
        const rows = LATENCIES.map(({ key, title }) => {
            const h = this.over(at, key, age), n = h ? h.n[h.n.length - 1] : NaN;
            const mean = n > 0 ? h.sum / n : NaN;
            return [title, count(n), seconds(mean), ...[0.5, 0.9, 0.95, 0.99].map((q) => shown(h, q))];
        });
        const span = age ? Math.min(age, this.samples[at].t - this.before(at, age).t) : 0;
        const heads = ['time', 'count', 'mean', 'p50', 'p90', 'p95', 'p99'];
        const caption = age ? `Over ${seconds(span)}` : 'Since the server started';
        $('latency').replaceChildren(tableOf(`${caption}; percentiles are read from histograms.`, heads, rows));
    },

    showCharts() {
        const at = this.samples.map((_, i) => i);
        const series = (name, value) => ({ name, points: at.map((i) => [this.samples[i].t, value(i)]) });
        const p = (key, q) => (i) => quantile(this.over(i, key, 30), q).value;
        const gauge = (key) => (i) => this.samples[i].r[key];
        const plain = (v) => count(v, v < 10 ? 1 : 0);
        $('charts').replaceChildren(
            lineChart('Tokens a second',
                [series('generated', (i) => this.rate(i, 'made')), series('read', (i) => this.rate(i, 'read'))], plain),
            lineChart('Requests', [series('running', gauge('running')), series('waiting', gauge('waiting'))], plain),
            lineChart('KV cache',
                [series('in use', gauge('usage')), series('fragmentation', gauge('fragmentation'))], percent, 1),
            lineChart('Time to the first token',
                [series('p50', p('ttft', 0.5)), series('p95', p('ttft', 0.95))], seconds),
            lineChart('Time between tokens', [series('p50', p('itl', 0.5)), series('p95', p('itl', 0.95))], seconds),
            lineChart('Memory', [series('resident', gauge('memory'))], bytes));
    },
};
