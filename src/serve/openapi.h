/* openapi.json of this folder, embedded at build. */
#ifndef NB_SERVE_OPENAPI_H
#define NB_SERVE_OPENAPI_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t nb_openapi_json[];
extern const size_t nb_openapi_json_len;

#endif
