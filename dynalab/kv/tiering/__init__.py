"""What moves where: the rules of a stack of tiers, written once for the replay and for real memory.

``rules`` decides about one block (where it is found, what it pushes out, which tiers it is offered to). ``pinned`` puts
those decisions into the steps of a block manager (match, onboard, allocate, register, release), in which blocks in use
cannot be evicted. Both are compiled functions over flat arrays and move no byte: :mod:`dynalab.cache` counts what they
decide, :mod:`dynalab.tiers` carries it out.
"""
