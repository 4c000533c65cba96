"""The colours of all figures and pages."""

# Okabe and Ito's, which colour-blind readers tell apart; instead of their yellow, which is hardly seen on white, a wine
# red that is darker than the others.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#882255")
# For published numbers and the teacher, which are not compared by colour.
GREY = "#777777"
INK = "#444444"
