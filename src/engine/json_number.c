/* JSON numbers, digit by digit: RFC 8259, section 6, and integers within bounds. */
#include "engine/json_state.h"

#define MAX_EXPONENT_DIGITS 2

static bool is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* Magnitudes that an integer of this sign may have. */
static void magnitudes(const nb_json_node *node, bool negative, int64_t *low, int64_t *high)
{
    const int64_t limit = 999999999999999999;
    if (negative) { /* there is no -0 */
        *low = node->max < -1 ? -node->max : 1;
        *high = node->min < -limit ? limit : -node->min;
    } else {
        *low = node->min > 0 ? node->min : 0;
        *high = node->max < limit ? node->max : limit;
    }
}

/* Do digits that begin with those of v lead to a magnitude in [low, high]? With k more digits they
 * reach from v * 10^k to v * 10^k + 10^k - 1. */
static bool leads_to(int64_t v, int32_t digits, int64_t low, int64_t high)
{
    int64_t scale = 1;
    for (int32_t k = digits; k <= NB_JSON_MAX_DIGITS; k++) {
        if (v * scale <= high && v * scale + (scale - 1) >= low)
            return true;
        if (v == 0 || k == NB_JSON_MAX_DIGITS)
            break;
        scale *= 10;
    }
    return false;
}

bool nb_json_next_whole(const nb_json_node *node, nb_json_frame *f, uint8_t c)
{
    if (!is_digit(c) || f->state == NB_JSON_AT_WHOLE_ZERO || f->len == NB_JSON_MAX_DIGITS)
        return false;
    int64_t low, high;
    magnitudes(node, f->negative, &low, &high);
    f->state = f->len == 0 && c == '0' ? NB_JSON_AT_WHOLE_ZERO : NB_JSON_AT_WHOLE;
    f->value = f->value * 10 + (c - '0');
    f->len++;
    return leads_to(f->value, f->len, low, high);
}

/* The fraction and the exponent may begin after these. */
static bool next_part(nb_json_frame *f, uint8_t c)
{
    if (c == '.' && (f->state == NB_JSON_AT_ZERO || f->state == NB_JSON_AT_INTEGRAL))
        f->state = NB_JSON_AT_POINT;
    else if ((c == 'e' || c == 'E') && f->state != NB_JSON_AT_EXPONENT)
        f->state = NB_JSON_AT_EXPONENT_SIGN;
    else
        return false;
    f->len = 0;
    return true;
}

static bool next_digit(nb_json_frame *f, uint8_t state, int32_t limit, uint8_t c)
{
    if (!is_digit(c) || f->len == limit)
        return false;
    f->state = state;
    f->len++;
    return true;
}

bool nb_json_next_number(nb_json_frame *f, uint8_t c)
{
    switch (f->state) {
    case NB_JSON_AT_MINUS:
        return next_digit(f, c == '0' ? NB_JSON_AT_ZERO : NB_JSON_AT_INTEGRAL, NB_JSON_MAX_DIGITS,
                          c);
    case NB_JSON_AT_ZERO:
        return next_part(f, c);
    case NB_JSON_AT_INTEGRAL:
        return next_digit(f, NB_JSON_AT_INTEGRAL, NB_JSON_MAX_DIGITS, c) || next_part(f, c);
    case NB_JSON_AT_POINT:
    case NB_JSON_AT_FRACTION:
        return next_digit(f, NB_JSON_AT_FRACTION, NB_JSON_MAX_DIGITS, c) ||
               (f->state == NB_JSON_AT_FRACTION && next_part(f, c));
    case NB_JSON_AT_EXPONENT_SIGN:
        if (c == '+' || c == '-') {
            f->state = NB_JSON_AT_EXPONENT_FIRST;
            return true;
        }
        return next_digit(f, NB_JSON_AT_EXPONENT, MAX_EXPONENT_DIGITS, c);
    case NB_JSON_AT_EXPONENT_FIRST:
    case NB_JSON_AT_EXPONENT:
        return next_digit(f, NB_JSON_AT_EXPONENT, MAX_EXPONENT_DIGITS, c);
    default:
        return false;
    }
}

bool nb_json_may_be_negative(const nb_json_node *node)
{
    int64_t low, high;
    magnitudes(node, true, &low, &high);
    return low <= high;
}

bool nb_json_number_is_final(const nb_json_node *node, const nb_json_frame *f)
{
    int64_t low, high;
    switch (f->state) {
    case NB_JSON_AT_ZERO:
    case NB_JSON_AT_INTEGRAL:
    case NB_JSON_AT_FRACTION:
    case NB_JSON_AT_EXPONENT:
        return true;
    case NB_JSON_AT_WHOLE_ZERO:
    case NB_JSON_AT_WHOLE:
        magnitudes(node, f->negative, &low, &high);
        return f->value >= low && f->value <= high;
    default:
        return false;
    }
}
