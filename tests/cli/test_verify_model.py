"""The bit matrix on the real model: floats and integers, a cache format with each, every instruction
set of this machine, 32 tokens. Not every format in every mode, which would take ten times as long: a
format and a mode meet in attention alone, and a tiny model has them all in test_verify.py."""

import os

import lib

MODEL = os.environ.get("NIBBLE_MODEL")


class RealModel(lib.Case):
    def check(self, *args):
        result = lib.json_lines(self.ok("verify", MODEL, "--json", "-q", "-n", "32", *args, timeout=800))[0]
        self.assertIsNone(result["mismatch"])
        self.assertEqual(result["threads"], [1, 2, 3, 8])
        for isa in result["isas"]:
            self.assertEqual(isa["n_tokens"], 32)
        for h in result["hashes"]:
            print("%-3s %-4s %s, %d ways" % (h["compute"], h["kv"], h["logits_hash"], h["n_ways"]))
        return {(h["compute"], h["kv"]): h["logits_hash"] for h in result["hashes"]}

    def test_the_bit_matrix(self):
        f = self.check("--compute", "f", "--kv", "f16")
        i8 = self.check("--compute", "i8", "--kv", "int8")
        self.assertEqual(len(set((f | i8).values())), 2)


if __name__ == "__main__":
    if not MODEL or not os.path.exists(MODEL):
        lib.skip("NIBBLE_MODEL does not name the real model")
    lib.main()
