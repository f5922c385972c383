"""Every method, and some claims of their papers, on real weights and real text: see `methods.md`."""
