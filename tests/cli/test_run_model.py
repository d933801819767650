"""Greedy generation on the real model: the tokens that transformers gives with the same weights in
float32 (torch, dequantized by the gguf package), 40 for each prompt or up to the end token."""

import json
import os

import lib

MODEL = os.environ.get("NIBBLE_MODEL")
CHAT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n")
ROWS = [
    (CHAT,
     [504, 3575, 282, 4649, 314, 7042, 30]),
    ("Once upon a time",
     [28, 260, 2240, 282, 23324, 27108, 436, 253, 15114, 39228, 28, 351, 25854, 41658, 284, 14055,
      9018, 30, 1249, 347, 260, 929, 3514, 411, 28, 260, 2240, 2585, 288, 5946, 624, 2798,
      9615, 30, 378, 2268, 29, 16591, 20215, 282]),
    ("def fibonacci(n):",
     [472, 585, 304, 1758, 216, 32, 42, 448, 1003, 216, 33, 472, 1003, 304, 1672, 3987, 46477, 24,
      94, 731, 216, 33, 25, 198, 198, 19, 4246, 260, 1517, 198, 3272, 24, 38572, 46477, 24,
      33, 32, 1292, 216, 907]),
    ("The capital of France is",
     [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216,
      33, 34, 42, 33, 34, 42, 37, 35, 30]),
]


class RealModel(lib.Case):
    def test_greedy_tokens_are_those_of_transformers(self):
        for prompt, want in ROWS:
            done = json.loads(self.ok("run", MODEL, prompt, "--special", "-n", "40", "--compute", "f",
                                      "--kv", "f32", "--json", "-q"))
            self.assertEqual(done["tokens"], want, prompt)

    def test_chat_knows_a_capital(self):
        text = self.ok("chat", MODEL, "-q", "--compute", "i16", "-m", "What is the capital of France?")
        self.assertEqual(text, "The capital of France is Paris.\n")


if __name__ == "__main__":
    if not MODEL or not os.path.exists(MODEL):
        lib.skip("NIBBLE_MODEL does not name the real model")
    lib.main()
