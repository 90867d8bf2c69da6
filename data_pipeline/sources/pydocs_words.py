"""Words that questions about documentation are phrased with."""

_FUNCTION_WORDS = """
a about after all also an and any are as at be been before but by can do does each either
else for from given has have here how if in instead into is it its may more must no not of on
only or other otherwise same see should so some such than that the their them then there these
they this to use used uses using value was when where which while will with without you your
arg args argument arguments called call class default false function method module none object
objects optional parameter parameters python raise raises return returned returns self true
type one two too etc don won isn doesn like whether
"""
STOPWORDS = frozenset(_FUNCTION_WORDS.split())
# After one of these the verb means something else ("set up"), or is not alone.
PARTICLES = frozenset({"up", "out", "off", "down", "on", "and", "or", "to", "by"})
# A first sentence that begins with one of these verbs becomes a "how do I" question.
PURPOSES = {
    "add": "put in", "append": "put at the end", "calculate": "work out", "check": "find out",
    "close": "shut", "compute": "work out", "convert": "turn", "copy": "duplicate",
    "create": "make", "delete": "get rid of", "display": "show", "execute": "carry out",
    "find": "look up", "format": "lay out", "get": "obtain", "insert": "put in", "load": "read in",
    "make": "build", "move": "shift", "open": "access", "parse": "take apart", "print": "show",
    "read": "take in", "register": "announce", "remove": "get rid of", "retrieve": "obtain",
    "return": "get", "run": "carry out", "send": "transmit", "set": "choose", "start": "begin",
    "stop": "end", "test": "find out", "update": "bring up to date", "wait": "pause",
    "write": "put out",
}  # fmt: skip
SYNONYMS = {
    "whether": "if", "specified": "given", "given": "specified", "directory": "folder",
    "string": "text", "element": "item", "elements": "items", "current": "present",
    "number": "count", "argument": "parameter", "arguments": "parameters", "create": "make",
    "contains": "holds", "containing": "holding", "remove": "drop", "entire": "whole",
}  # fmt: skip
