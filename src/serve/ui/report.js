
// ---- report: nibble-report.json, which lies beside a quantized model. It comes from a file that
// may have been made by anyone: every part is looked at before it is used.

const KINDS = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'];

const is = {
    object: (v) => v !== null && typeof v === 'object' && !Array.isArray(v),
    number: (v) => typeof v === 'number' && Number.isFinite(v),
    text: (v) => typeof v === 'string',
};
const object = (v) => is.object(v) ? v : {};
const list = (v) => Array.isArray(v) ? v.filter(is.object) : [];
const number = (v) => is.number(v) ? v : NaN;
const word = (v) => is.text(v) ? v : '';

function table(caption, heads, rows) {
    if (!rows.length) return null;
    return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
        tableOf(caption, heads, rows));
}

const report = {
    asked: false,

    async look() {
        if (this.asked) return;
        this.asked = true;
        const box = $('report');
        try {
            const read_in = await (await read('nibble/report')).json();
            box.replaceChildren(...this.build(object(read_in)));
        } catch (error) {
            this.asked = error.status === 404;
            box.replaceChildren(el('p', { role: 'status' }, error.status === 404
                ? 'This model came without a report. nibble quantize writes one beside each model it makes, ' +
                    'and with --calib it says how far each layer is from the original.'
                : error instanceof Refusal ? error.message : 'The report could not be read.'));
        }
    },

    build(o) {
        const calibration = object(o.calibration), evaluation = object(o.evaluation);
        return [this.facts(o, calibration), ...this.evaluated(evaluation), ...this.tasks(evaluation),
            ...this.notes(o, calibration), ...this.layers(calibration)].filter(Boolean);
    },

    facts(o, calibration) {
        const rows = [
            ['source', word(o.source)], ['scheme', word(o.scheme)], ['method', word(o.method)],
            ['container', word(o.container)], ['bits per weight, all tensors', digits(o.bpw)],
            ['bits per weight, quantized ones', digits(o.linear_bpw)],
            ['size', is.number(o.bytes) ? `${bytes(o.bytes)} (of ${bytes(o.source_bytes)})` : ''],
            ['parameters', count(o.n_params)],
            ['tensors quantized', is.number(o.n_quantized) ? `${count(o.n_quantized)} of ${count(o.n_tensors)}` : ''],
            ['error of the weights, root mean square', digits(o.rms_error)],
            ['time it took', seconds(o.seconds)], ['memory it took', bytes(o.peak_rss_bytes)],
            ['calibration tokens', count(calibration.tokens)],
            ['calibration set, sha256', word(calibration.sha256)], ['output, sha256', word(o.sha256)],
            ['made by nibble', word(o.nibble)],
        ].filter(([, value]) => value && value !== DASH);
        return table('What it is', null, rows);
    },

    evaluated(e) {
        const out = [];
        if (word(e.left_out)) out.push(el('p', {}, 'It was not evaluated: ' + e.left_out));
        const rows = [
            ['KL divergence to the original, mean', digits(e.kl_mean)], ['the same, median', digits(e.kl_median)],
            ['the same, p99', digits(e.kl_p99)], ['noise floor of it', digits(object(e.noise_floor).kl_mean)],
            ['perplexity', digits(e.perplexity)], ['perplexity of the original', digits(e.base_perplexity)],
            ['likeliest token agrees', percent(number(e.top1))], ['tokens measured on', count(e.n_tokens)],
        ].filter(([, value]) => value !== DASH);
        if (!rows.length) return out;
        out.push(el('h3', {}, 'How far from the original'), table('Measured on text that was held out', null, rows));
        const per = list(e.layers).filter((l) => is.number(l.layer)).slice(0, 400)
            .map((l) => ({ name: `layer ${l.layer}`, values: [number(l.kl_mean)] }));
        out.push(barChart('KL divergence with this block alone quantized', ['KL'], per, digits));
        return out;
    },

    tasks(e) {
        const tasks = list(e.tasks).slice(0, 100);
        const out = word(e.tasks_left_out) ? [el('p', {}, 'No answers to tasks: ' + e.tasks_left_out)] : [];
        if (!tasks.length) return out;
        const share = (v, se) => percent(number(v)) + (is.number(se) ? ` \u00b1 ${percent(se)}` : '');
        out.push(el('h3', {}, 'Tasks'),
            barChart('Items answered right', ['quantized', 'original'],
                tasks.map((t) => ({ name: word(t.task), values: [number(t.acc), number(t.base_acc)] })), percent),
            table('Right by likelihood (acc), and by likelihood per character (acc_norm), with standard errors',
                ['task', 'items', 'acc', 'of the original', 'acc_norm', 'of the original', 'answers that flipped'],
                tasks.map((t) => [word(t.task), count(t.n), share(t.acc, t.acc_se), share(t.base_acc, t.base_acc_se),
                    share(t.acc_norm, t.acc_norm_se), share(t.base_acc_norm, t.base_acc_norm_se), count(t.flips)])));
        return out;
    },

    notes(o, calibration) {
        const texts = [o.notes, object(calibration.score).warnings]
            .flatMap((v) => Array.isArray(v) ? v.filter(is.text) : []);
        for (const r of list(o.reasons))
            texts.push(`${word(r.layers)}: ${word(r.scheme)}${word(r.because) ? ', because ' + r.because : ''}`);
        if (!texts.length) return [];
        const items = texts.slice(0, 200).map((text) => el('li', { dir: 'auto' }, text));
        return [el('h3', {}, 'Notes'), el('ul', {}, items)];
    },

    // Error of the outputs, layer by layer, and the worst layers first in the bars.
    layers(calibration) {
        const all = list(calibration.layers).filter((l) => is.text(l.name)).slice(0, 5000);
        if (!all.length) return [];
        const blocks = new Map();
        for (const l of all) {
            const m = /\.layers\.(\d{1,4})\..*\.(q|k|v|o|gate|up|down)_proj/.exec(l.name);
            if (!m || !is.number(l.loss)) continue;
            if (!blocks.has(m[1])) blocks.set(m[1], KINDS.map(() => NaN));
            blocks.get(m[1])[KINDS.indexOf(m[2])] = l.loss;
        }
        const worst = all.filter((l) => is.number(l.loss)).sort((a, b) => b.loss - a.loss).slice(0, 12).map((l) => ({
            name: l.name.replace(/^model\.layers\./, '').replace(/\.weight$/, ''),
            values: [l.loss, number(l.held_out_loss)],
        }));
        const rows = all.map((l) => [l.name, word(l.format), digits(8 * number(l.bytes) / number(l.params)),
            digits(l.loss), digits(l.held_out_loss), digits(l.rms_error), digits(l.predicted_kl), word(l.note)]);
        return [el('h3', {}, 'Linear layers'),
            barChart('The largest errors of outputs, as a share of their energy',
                ['calibration text', 'held out'], worst, digits),
            table('Error of outputs by layer and kind', ['layer', ...KINDS],
                [...blocks].map(([layer, losses]) => [layer, ...losses.map((v) => digits(v, 3))])),
            el('details', {}, el('summary', {}, `All ${count(all.length)}`),
                table('All linear layers', ['layer', 'format', 'bits per weight', 'error of outputs', 'held out',
                    'error of weights', 'predicted KL', 'note'], rows))];
    },
};
