/* See problem.h. */
#include "serve/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

nb_status nb_refuse(nb_problem *why, int http, const char *param, const char *format, ...)
{
    char text[sizeof why->err.text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    why->http = http;
    snprintf(why->param, sizeof why->param, "%s", param != NULL ? param : "");
    return nb_fail(&why->err, NB_DATA, "%s", text);
}

nb_status nb_problem_settle(nb_problem *why, nb_status status)
{
    if (status == NB_OK || why->http != 0)
        return status;
    switch (status) {
    case NB_OK:
    case NB_DATA:
    case NB_UNSUPPORTED:
    case NB_USAGE:
    case NB_LIMIT:
        why->http = 400;
        break;
    case NB_MEMORY: /* of this moment: others will have ended soon */
        why->http = 503;
        why->retry_after_s = 1;
        break;
    case NB_IO:
    case NB_INTERRUPTED:
        why->http = 500;
        break;
    }
    return status;
}

const char *nb_problem_type(int http)
{
    switch (http) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "unavailable_error";
    default:
        return http >= 500 ? "server_error" : "invalid_request_error";
    }
}

void nb_problem_write(const nb_problem *why, nb_wire *out)
{
    nb_wire_raw(out, "{\"error\":{\"message\":");
    nb_wire_string(out, why->err.text, strlen(why->err.text));
    nb_wire_raw(out, ",\"type\":\"");
    nb_wire_raw(out, nb_problem_type(why->http));
    nb_wire_raw(out, "\",\"param\":");
    if (why->param[0] != 0)
        nb_wire_string(out, why->param, strlen(why->param));
    else
        nb_wire_raw(out, "null");
    nb_wire_raw(out, ",\"code\":");
    if (why->code != NULL)
        nb_wire_string(out, why->code, strlen(why->code));
    else
        nb_wire_raw(out, "null");
    nb_wire_raw(out, "}}");
}
