"""Generated, labelled indoor rooms: plan, furniture, materials, and a virtual laser scan."""
