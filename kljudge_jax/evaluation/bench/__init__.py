"""Speed alone: the parts of a cycle, whole answers, and what a cost model makes of them."""
