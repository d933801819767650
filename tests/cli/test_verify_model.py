"""The bit matrix on the real model: every mode and cache format, every instruction set of this
machine, with 16 tokens for scalar code and 64 otherwise. Two minutes of two cores."""

import os

import lib

MODEL = os.environ.get("NIBBLE_MODEL")


class RealModel(lib.Case):
    def test_the_bit_matrix(self):
        result = lib.json_lines(self.ok("verify", MODEL, "--json", "-q", timeout=850))[0]
        self.assertIsNone(result["mismatch"])
        self.assertEqual({h["compute"] for h in result["hashes"]}, {"f", "i8", "i16"})
        self.assertGreaterEqual(len(result["hashes"]), 6)
        self.assertEqual(len({h["logits_hash"] for h in result["hashes"]}), len(result["hashes"]))
        for isa in result["isas"]:
            self.assertEqual(isa["n_tokens"], 16 if isa["isa"] == "scalar" else 64)
        for h in result["hashes"]:
            print("%-3s %-4s %s, %d ways" % (h["compute"], h["kv"], h["logits_hash"], h["n_ways"]))


if __name__ == "__main__":
    if not MODEL or not os.path.exists(MODEL):
        lib.skip("NIBBLE_MODEL does not name the real model")
    lib.main()
