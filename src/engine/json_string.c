/* Inside a JSON string: RFC 8259, section 7, and UTF-8 as RFC 3629, section 4. */
#include "engine/json_walk.h"

static bool in(uint8_t c, uint8_t low, uint8_t high)
{
    return c >= low && c <= high;
}

static int hex_digit(uint8_t c)
{
    return in(c, '0', '9')   ? c - '0'
           : in(c, 'a', 'f') ? c - 'a' + 10
           : in(c, 'A', 'F') ? c - 'A' + 10
                             : -1;
}

/* A character begins. */
static nb_json_string_state first_byte(uint8_t c)
{
    if (c == '"')
        return NB_JSON_S_CLOSED;
    if (c == '\\')
        return NB_JSON_S_ESCAPE;
    if (c < 0x80)
        return c < 0x20 ? NB_JSON_S_DEAD : NB_JSON_S_BODY;
    if (c < 0xe0)
        return c < 0xc2 ? NB_JSON_S_DEAD : NB_JSON_S_TAIL_1;
    if (c < 0xf0)
        return c == 0xe0 ? NB_JSON_S_AFTER_E0 : c == 0xed ? NB_JSON_S_AFTER_ED : NB_JSON_S_TAIL_2;
    return c == 0xf0   ? NB_JSON_S_AFTER_F0
           : c == 0xf4 ? NB_JSON_S_AFTER_F4
           : c < 0xf4  ? NB_JSON_S_TAIL_3
                       : NB_JSON_S_DEAD;
}

static nb_json_string_state escaped(uint8_t c)
{
    switch (c) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return NB_JSON_S_BODY;
    case 'u':
        return NB_JSON_S_HEX_1;
    default:
        return NB_JSON_S_DEAD;
    }
}

static nb_json_string_state then(bool admitted, nb_json_string_state next)
{
    return admitted ? next : NB_JSON_S_DEAD;
}

nb_json_string_state nb_json_string_next(nb_json_string_state state, uint8_t c)
{
    const int h = hex_digit(c);
    switch (state) {
    case NB_JSON_S_BODY:
        return first_byte(c);
    case NB_JSON_S_ESCAPE:
        return escaped(c);
    case NB_JSON_S_HEX_1:
        return h == 0 ? NB_JSON_S_ZERO_2 : h == 13 ? NB_JSON_S_D_2 : then(h > 0, NB_JSON_S_HEX_2);
    case NB_JSON_S_ZERO_2:
        return h == 0 ? NB_JSON_S_ZERO_3 : then(h > 0, NB_JSON_S_HEX_3);
    case NB_JSON_S_ZERO_3:
        return h == 0 ? NB_JSON_S_ZERO_4 : then(h > 0, NB_JSON_S_HEX_4);
    case NB_JSON_S_ZERO_4:
        return then(h > 0, NB_JSON_S_BODY);
    case NB_JSON_S_D_2:
        return h >= 8 ? then(h < 12, NB_JSON_S_HIGH_3) : then(h >= 0, NB_JSON_S_HEX_3);
    case NB_JSON_S_HEX_2:
        return then(h >= 0, NB_JSON_S_HEX_3);
    case NB_JSON_S_HEX_3:
        return then(h >= 0, NB_JSON_S_HEX_4);
    case NB_JSON_S_HEX_4:
        return then(h >= 0, NB_JSON_S_BODY);
    case NB_JSON_S_HIGH_3:
        return then(h >= 0, NB_JSON_S_HIGH_4);
    case NB_JSON_S_HIGH_4:
        return then(h >= 0, NB_JSON_S_LOW_SLASH);
    case NB_JSON_S_LOW_SLASH:
        return then(c == '\\', NB_JSON_S_LOW_U);
    case NB_JSON_S_LOW_U:
        return then(c == 'u', NB_JSON_S_LOW_1);
    case NB_JSON_S_LOW_1:
        return then(h == 13, NB_JSON_S_LOW_2);
    case NB_JSON_S_LOW_2:
        return then(h >= 12, NB_JSON_S_LOW_3);
    case NB_JSON_S_LOW_3:
        return then(h >= 0, NB_JSON_S_HEX_4);
    case NB_JSON_S_TAIL_1:
        return then(in(c, 0x80, 0xbf), NB_JSON_S_BODY);
    case NB_JSON_S_TAIL_2:
        return then(in(c, 0x80, 0xbf), NB_JSON_S_TAIL_1);
    case NB_JSON_S_TAIL_3:
        return then(in(c, 0x80, 0xbf), NB_JSON_S_TAIL_2);
    case NB_JSON_S_AFTER_E0:
        return then(in(c, 0xa0, 0xbf), NB_JSON_S_TAIL_1);
    case NB_JSON_S_AFTER_ED:
        return then(in(c, 0x80, 0x9f), NB_JSON_S_TAIL_1);
    case NB_JSON_S_AFTER_F0:
        return then(in(c, 0x90, 0xbf), NB_JSON_S_TAIL_2);
    case NB_JSON_S_AFTER_F4:
        return then(in(c, 0x80, 0x8f), NB_JSON_S_TAIL_2);
    case NB_JSON_S_DEAD:
    case NB_JSON_S_CLOSED:
    case NB_JSON_S_LAST:
        break;
    }
    return NB_JSON_S_DEAD;
}
