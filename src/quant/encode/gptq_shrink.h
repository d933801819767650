/* One group of linears by a second-order encoder: how far H is shrunk towards its diagonal is
 * chosen on held-out tokens, because error feedback that trusts a few tokens' H too far does worse
 * on text it has not seen than plain rounding. */
#ifndef NB_QUANT_ENCODE_GPTQ_SHRINK_H
#define NB_QUANT_ENCODE_GPTQ_SHRINK_H

#include "quant/encode/gptq.h"

/* Rows of each linear that candidates are compared on, at most. */
#define NB_GPTQ_SAMPLE_ROWS 192

/* nb_quantizer.encode_group of gptq, gptaq and qronos. Candidates are encoded with the tokens that
 * choose and compared on those held out, on a sample of rows; then the group is encoded once more
 * with all tokens. `held_loss` is that of the best candidate, to which held-out tokens were new. */
nb_status nb_gptq_encode_group(const nb_group_job *job, nb_group_result *result, nb_err *err);

#endif
