
// ---- api: the server's routes, and what goes wrong with them in words

// Why a request got no answer. `status` 0: the server was not reached, or the connection broke.
class Refusal extends Error {
    constructor(words, status = 0) {
        super(words);
        this.status = status;
    }
}

const api = { key: kept.get(sessionStorage, 'key') || '' };

// OpenAI's error object, or nothing.
function saidBy(body) {
    const error = body && typeof body === 'object' ? body.error : null;
    if (!error) return '';
    const message = typeof error === 'string' ? error : error.message;
    if (typeof message !== 'string') return '';
    return message + (typeof error.param === 'string' && error.param ? ` (${error.param})` : '');
}

function inWords(status, said, wait) {
    const quoted = said ? ' The server says: ' + said : '';
    switch (status) {
    case 401: return 'The server wants an API key, and this one is missing or wrong: it goes into the settings.';
    case 403: return 'The server does not allow this.' + quoted;
    case 404: return 'The server does not have this.' + quoted;
    case 408: return 'The request took too long to arrive.' + quoted;
    case 413: return 'The conversation is longer than the server takes in one request.' + quoted;
    case 429: return (wait ? `The server is busy; it asks to try again in ${wait} s.`
        : 'The server is busy. Try again in a moment.') + quoted;
    case 503: return 'The server is not ready: it is loading the model, shutting down, or full.' + quoted;
    }
    if (status >= 500) return `The server failed (${status}).` + quoted;
    return said ? 'The server refused the request: ' + said : `The server refused the request (${status}).`;
}

async function request(path, options = {}) {
    const headers = { Accept: options.accept || 'application/json' };
    if (api.key) headers.Authorization = 'Bearer ' + api.key;
    if (options.body) headers['Content-Type'] = 'application/json';
    let response;
    try {
        response = await fetch(path, {
            method: options.body ? 'POST' : 'GET',
            headers,
            body: options.body ? JSON.stringify(options.body) : undefined,
            signal: options.signal,
            cache: 'no-store',
            credentials: 'omit',
            redirect: 'error',
        });
    } catch (error) {
        if (error.name === 'AbortError' || error.name === 'TimeoutError') throw error;
        // A key with letters that no header can carry never leaves the browser.
        if (error instanceof TypeError && /[^\x20-\x7e]/.test(api.key))
            throw new Refusal('The API key has characters that no key has.', 401);
        throw new Refusal('The server cannot be reached. Is it still running?');
    }
    if (response.ok) return response;
    let said = '';
    try { said = saidBy(await response.json()); } catch { /* no words */ }
    const wait = Number(response.headers.get('Retry-After'));
    throw new Refusal(inWords(response.status, said.slice(0, 2000), wait), response.status);
}

// What a page reads by itself may not wait for ever: the next look comes anyway.
async function read(path, accept) {
    return request(path, { accept, signal: AbortSignal.timeout(10000) });
}

// Server-sent events: yields the data of each, as text. Lines end in LF, CR or CRLF; a CR at the
// end of a piece waits for the next one. Every character is looked at once, however long a line is.
async function* events(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let rest = '', seen = 0, data = [];
    try {
        for (let last = false; !last;) {
            const { done, value } = await reader.read();
            last = done;
            rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
            let start = 0;
            const ends = /\r\n|\n|\r/g;
            ends.lastIndex = seen;
            for (let end; (end = ends.exec(rest));) {
                if (end[0] === '\r' && ends.lastIndex === rest.length && !last) break;
                const line = rest.slice(start, end.index);
                start = ends.lastIndex;
                if (line === '') {
                    if (data.length) yield data.join('\n');
                    data = [];
                } else if (line.startsWith('data:')) {
                    data.push(line.slice(line[5] === ' ' ? 6 : 5));
                }
            }
            rest = rest.slice(start);
            seen = rest.endsWith('\r') ? rest.length - 1 : rest.length;
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

// Streams an answer. `told` gets { text } for each piece; what it returns has `finish` (why the
// answer ended) and `usage` (tokens), where the server said so.
async function stream(body, signal, told) {
    const response = await request('v1/chat/completions', { body, signal, accept: 'text/event-stream' });
    const result = { finish: null, usage: null, done: false };
    const take = (object) => {
        const said = saidBy(object);
        if (said || object.error)
            throw new Refusal('The server stopped the answer: ' + (said || 'it does not say why.'), 500);
        if (object.usage && typeof object.usage === 'object') result.usage = object.usage;
        const choice = Array.isArray(object.choices) ? object.choices[0] : null;
        if (!choice) return;
        const part = choice.delta || choice.message;
        if (part && typeof part.content === 'string' && part.content) told({ text: part.content });
        if (typeof choice.finish_reason === 'string') result.finish = choice.finish_reason;
    };
    if ((response.headers.get('Content-Type') || '').startsWith('application/json')) {
        take(await response.json());
        result.done = true;
        return result;
    }
    try {
        for await (const data of events(response.body)) {
            if (data === '[DONE]') {
                result.done = true;
                break;
            }
            let object;
            try {
                object = JSON.parse(data);
            } catch {
                throw new Refusal('The server sent something that is no JSON.', 500);
            }
            if (object && typeof object === 'object') take(object);
        }
    } catch (error) {
        if (error instanceof Refusal || error.name === 'AbortError') throw error;
        throw new Refusal('The connection to the server broke before the answer was complete.');
    }
    if (!result.done && result.finish === null)
        throw new Refusal('The connection to the server ended before the answer was complete.');
    return result;
}
