/* See amx_emulator.h. */
#define _GNU_SOURCE /* ucontext's registers, syscall */
#include "support/amx_emulator.h"
#include "support/golden.h"

#include "kernel/cpu.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>

/* ---- the state ---- */

enum { N_TILES = 8, MAX_ROWS = 16, MAX_ROW_BYTES = 64 };

typedef struct {
    bool configured;
    uint16_t row_bytes[N_TILES];
    uint8_t rows[N_TILES];
    uint8_t tile[N_TILES][MAX_ROWS][MAX_ROW_BYTES];
} tiles;

/* Each thread has its own, as the processor has. */
static _Thread_local tiles state;

static atomic_int_fast64_t n_instructions, n_products;
static atomic_int planted;
static char fault_text[160];
static atomic_flag fault_taken = ATOMIC_FLAG_INIT;
static atomic_bool fault_ready;
static bool fault_expected;
static struct sigaction before;
static bool in_place;

/* In a signal handler: no stdio. */
static void fault(const char *instruction, const char *why)
{
    if (atomic_flag_test_and_set(&fault_taken))
        return;
    size_t n = 0;
    for (const char *const *part = (const char *const[]){instruction, ": ", why, NULL};
         *part != NULL; part++)
        for (const char *c = *part; *c != '\0' && n + 1 < sizeof fault_text; c++)
            fault_text[n++] = *c;
    fault_text[n] = '\0';
    atomic_store(&fault_ready, true);
}

/* ---- instructions ---- */

/* SDM: LDTILECFG. Everything the manual calls reserved must be 0. */
static void load_config(const uint8_t *from)
{
    uint8_t m[64];
    memcpy(m, from, sizeof m);
    memset(&state, 0, sizeof state);
    if (m[0] == 0) /* palette 0: the initial state */
        return;
    if (m[0] != 1) {
        fault("ldtilecfg", "a palette that does not exist");
        return;
    }
    bool reserved = m[1] != 0; /* start_row: an interrupted load or store, never ours */
    for (int i = 2; i < 16; i++)
        reserved |= m[i] != 0;
    for (int i = 16 + 2 * N_TILES; i < 48; i++)
        reserved |= m[i] != 0;
    for (int i = 48 + N_TILES; i < 64; i++)
        reserved |= m[i] != 0;
    if (reserved) {
        fault("ldtilecfg", "reserved bytes are not 0");
        return;
    }
    tiles next = {.configured = true};
    for (int i = 0; i < N_TILES; i++) {
        memcpy(&next.row_bytes[i], m + 16 + 2 * i, 2);
        next.rows[i] = m[48 + i];
        if (next.row_bytes[i] > MAX_ROW_BYTES || next.rows[i] > MAX_ROWS ||
            (next.row_bytes[i] == 0) != (next.rows[i] == 0)) {
            fault("ldtilecfg", "a shape that does not exist");
            return;
        }
    }
    state = next;
}

static bool usable(const char *instruction, int t)
{
    const bool good = state.configured && t < N_TILES && state.rows[t] > 0;
    if (!good)
        fault(instruction, state.configured ? "a tile without a shape" : "no configuration");
    return good;
}

/* SDM: TILELOADD. Rows and bytes past the shape become 0. */
static void load_tile(int t, const uint8_t *at, int64_t stride)
{
    if (!usable("tileloadd", t) || (atomic_load(&planted) == AMX_LOAD_STALE && t == 5))
        return;
    memset(state.tile[t], 0, sizeof state.tile[t]);
    for (int r = 0; r < state.rows[t]; r++)
        memcpy(state.tile[t][r], at + r * stride, state.row_bytes[t]);
}

/* SDM: TILESTORED. */
static void store_tile(int t, uint8_t *at, int64_t stride)
{
    if (!usable("tilestored", t))
        return;
    const int out = atomic_load(&planted) == AMX_STORE_SHORT;
    for (int r = 0; r < state.rows[t] - out; r++)
        memcpy(at + r * stride, state.tile[t][r], state.row_bytes[t]);
}

static void zero_tile(int t)
{
    if (usable("tilezero", t) && !(atomic_load(&planted) == AMX_KEEPS_SUMS && t == 2))
        memset(state.tile[t], 0, sizeof state.tile[t]);
}

static int byte_value(uint8_t b, bool is_signed)
{
    return is_signed && b > 127 ? b - 256 : b;
}

/* SDM: TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD: c += a * b in dwords of four bytes, modulo 2^32. */
static void multiply(int c, int a, int b, bool a_signed, bool b_signed)
{
    static const char name[] = "tdpb__d";
    if (!usable(name, c) || !usable(name, a) || !usable(name, b))
        return;
    if (c == a || c == b || a == b) {
        fault(name, "the same register twice");
        return;
    }
    const int n = state.row_bytes[c] / 4;
    if (state.row_bytes[c] % 4 != 0 || state.row_bytes[a] % 4 != 0 ||
        state.rows[c] != state.rows[a] || state.row_bytes[a] / 4 != state.rows[b] ||
        state.row_bytes[c] != state.row_bytes[b]) {
        fault(name, "shapes that do not fit");
        return;
    }
    const int wrong = atomic_load(&planted);
    a_signed = a_signed && wrong != AMX_A_UNSIGNED;
    b_signed = b_signed && wrong != AMX_B_UNSIGNED;
    const int n_k = state.row_bytes[a] / 4 - (wrong == AMX_LAST_DWORD_OUT);
    for (int r = 0; r < state.rows[c]; r++) {
        for (int i = 0; i < n; i++) {
            uint32_t sum;
            memcpy(&sum, &state.tile[c][r][4 * i], 4);
            for (int k = 0; k < n_k; k++)
                for (int j = 0; j < 4; j++)
                    sum += (uint32_t)(byte_value(state.tile[a][r][4 * k + j], a_signed) *
                                      byte_value(state.tile[b][k][4 * i + j], b_signed));
            memcpy(&state.tile[c][r][4 * i], &sum, 4);
        }
    }
    memset(state.tile[c] + state.rows[c], 0,
           (size_t)(MAX_ROWS - state.rows[c]) * sizeof state.tile[c][0]);
    atomic_fetch_add(&n_products, 1);
}

/* ---- decoding ----
 *
 * All are VEX.128.W0 in map 0F 38:  C4 | ~R ~X ~B 00010 | W ~vvvv L pp | opcode | ModRM ... */

typedef struct {
    int pp, reg, vvvv, rm; /* registers, extended by R and B */
    bool is_register;      /* mod = 3 */
    uint8_t *memory;       /* else the address without the index */
    int64_t index;         /* index << scale; the stride of tile loads and stores */
    bool has_sib;
    size_t length;
} operands;

static int64_t general(const greg_t *r, int number)
{
    static const int where[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    return r[where[number]];
}

static operands decode(const uint8_t *code, const greg_t *r)
{
    const bool R = !(code[1] & 0x80), X = !(code[1] & 0x40), B = !(code[1] & 0x20);
    const uint8_t modrm = code[4];
    const int mod = modrm >> 6, rm = modrm & 7;
    operands o = {.pp = code[2] & 3,
                  .reg = (modrm >> 3 & 7) + 8 * R,
                  .vvvv = ~(code[2] >> 3) & 15,
                  .rm = rm + 8 * B,
                  .is_register = mod == 3,
                  .length = 5};
    if (o.is_register)
        return o;
    int64_t base = 0;
    int base_number = rm;
    if (rm == 4) {
        const uint8_t sib = code[o.length++];
        o.has_sib = true;
        base_number = sib & 7;
        const int index = (sib >> 3 & 7) + 8 * X;
        if (index != 4)
            o.index = (int64_t)((uint64_t)general(r, index) << (sib >> 6));
    }
    int32_t displacement = 0;
    if (mod == 0 && base_number == 5) { /* no base (with SIB), or relative to the next RIP */
        memcpy(&displacement, code + o.length, 4);
        o.length += 4;
        if (!o.has_sib)
            base = (int64_t)(uintptr_t)code + (int64_t)o.length;
    } else {
        base = general(r, base_number + 8 * B);
        if (mod == 1) {
            displacement = (int8_t)code[o.length++];
        } else if (mod == 2) {
            memcpy(&displacement, code + o.length, 4);
            o.length += 4;
        }
    }
    o.memory = (uint8_t *)(uintptr_t)(base + displacement);
    return o;
}

/* Does the instruction at `code`; returns its length, 0 if it is none of ours. */
static size_t step(const uint8_t *code, const greg_t *r)
{
    enum { NP, P66, PF3, PF2 };
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0)
        return 0;
    const operands o = decode(code, r);
    if (code[3] != 0x5e && o.vvvv != 0)
        return 0;
    switch (code[3]) {
    case 0x49:
        if (!o.is_register && o.pp == NP && o.reg == 0) {
            load_config(o.memory + o.index);
            return o.length;
        }
        if (o.is_register && o.pp == NP && code[4] == 0xc0) { /* tilerelease */
            memset(&state, 0, sizeof state);
            return o.length;
        }
        if (o.is_register && o.pp == PF2 && o.rm == 0) {
            zero_tile(o.reg);
            return o.length;
        }
        return 0;
    case 0x4b:
        if (o.is_register || !o.has_sib || o.pp == NP)
            return 0;
        if (o.pp == PF3)
            store_tile(o.reg, o.memory, o.index);
        else /* with or without the hint that the data will not be used again */
            load_tile(o.reg, o.memory, o.index);
        return o.length;
    case 0x5e:
        if (!o.is_register)
            return 0;
        multiply(o.reg, o.rm, o.vvvv, o.pp == PF2 || o.pp == PF3, o.pp == PF2 || o.pp == P66);
        return o.length;
    default:
        return 0;
    }
}

static void on_illegal_instruction(int number, siginfo_t *info, void *context)
{
    (void)info;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const size_t length = step((const uint8_t *)(uintptr_t)r[REG_RIP], r);
    if (length == 0) { /* not ours: it stops again, and there is no handler any more */
        signal(number, SIG_DFL);
        return;
    }
    r[REG_RIP] += (greg_t)length;
    atomic_fetch_add(&n_instructions, 1);
}

/* ---- what tests call ---- */

amx_kind amx_begin(unsigned isa)
{
    if (!(isa & NB_ISA_AVX512)) {
        printf("SKIP amx: its kernels use AVX-512 too, and this machine has none\n");
        return AMX_ABSENT;
    }
    if (isa & NB_ISA_AMX)
        return AMX_NATIVE;
    memset(&state, 0, sizeof state);
    atomic_store(&n_instructions, 0);
    atomic_store(&n_products, 0);
    atomic_store(&planted, AMX_RIGHT);
    atomic_store(&fault_ready, false);
    atomic_flag_clear(&fault_taken);
    struct sigaction ours = {.sa_sigaction = on_illegal_instruction, .sa_flags = SA_SIGINFO};
    assert_int_equal(sigaction(SIGILL, &ours, &before), 0);
    fault_expected = false;
    in_place = true;
    return AMX_EMULATED;
}

bool amx_configured(void)
{
    return state.configured;
}

void amx_end(void)
{
    if (!in_place)
        return;
    in_place = false;
    sigaction(SIGILL, &before, NULL);
    if (amx_fault() != NULL && !fault_expected)
        fail_msg("the processor would have refused: %s", amx_fault());
}
#else
static atomic_int_fast64_t n_instructions, n_products;
static atomic_int planted;
static char fault_text[1];
static atomic_bool fault_ready;
static bool fault_expected;

amx_kind amx_begin(unsigned isa)
{
    (void)isa;
    printf("SKIP amx: not an x86-64 Linux machine\n");
    return AMX_ABSENT;
}

void amx_end(void)
{
}

bool amx_configured(void)
{
    return false;
}
#endif

const char *amx_fault(void)
{
    return atomic_load(&fault_ready) ? fault_text : NULL;
}

void amx_expect_fault(void)
{
    fault_expected = true;
}

int64_t amx_n_instructions(void)
{
    return atomic_load(&n_instructions);
}

int64_t amx_n_products(void)
{
    return atomic_load(&n_products);
}

void amx_plant(amx_planted fault_)
{
    atomic_store(&planted, (int)fault_);
}
