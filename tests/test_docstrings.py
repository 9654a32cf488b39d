"""Docstrings of functions begin with what the function does, in the imperative.

ruff's D401 knows verbs in other forms ("Returns"), and lets every noun pass ("Mean over replicas.").
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A verb that is missing belongs here.
VERBS = """
Accept Add Advance Align Allow Answer Append Apply Ask Attach Attack Average Be Begin Bind Bisect Bring Broadcast
Build Call Cancel Carry Change Check Choose Classify Clear Climb Clip Close Collect Combine Compare Compile Compress
Compute Configure Connect Continue Convert Convolve Copy Corrupt Count Create Crop Cut Decide Declare Decode Delete
Describe Detect Differentiate Disable Divide Download Draw Drop Empty Encode End Enlarge Enter Estimate Evaluate
Expand Explain Export Extract Fetch Fill Filter Find Fit Flatten Follow Forget Format Generate Get Give Go Group
Handle Hash Hide Hold Ignore Import Include Insert Install Interleave Join Judge Keep Lay Leave Let Limit List Listen
Load Lock Look Make Map Mark Match Measure Merge Mirror Mix Move Multiply Name Normalise Normalize Note Open Pack Pad
Parse Pass Permute Perturb Pick Place Plan Poll Predict Prepare Print Process Project Publish Put Quantise Quantize
Raise Rank Read Rebuild Record Reduce Refuse Register Release Remove Render Repeat Replace Report Reset Resize Restore
Resume Return Reverse Rewrite Rotate Round Run Sample Save Say Scale Scan Search Select Send Serve Set Shift Show
Shuffle Skip Sort Split Spread Stamp Start Stop Store Sum Summarise Swap Switch Take Tell Test Time Trace Track Train
Transform Translate Transpose Trim Try Turn Undo Unpack Update Use Validate Verify Wait Walk Warn Weigh Wrap Write
Yield
"""


def nouns(source, file="a.py"):
    """Docstrings that begin otherwise, with their places; a property says what it is, so it may."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (text := ast.get_docstring(node)):
            continue
        first, second = [*text.split()[:2], ""][:2]
        is_property = any(ast.unparse(each).endswith("property") for each in node.decorator_list)
        if not is_property and (first.strip(",.:;") not in VERBS.split() or second == "of"):
            yield f"{file}:{node.lineno}: {text.splitlines()[0]}"


def test_docstrings_begin_with_a_verb():
    files = sorted((ROOT / "cifs_tf").rglob("*.py"))
    assert [each for file in files for each in nouns(file.read_text(), file.relative_to(ROOT))] == []


def test_nouns_are_found():
    def function(text, decorator=""):
        return f'{decorator}\ndef f():\n    """{text}"""'

    assert list(nouns(function("Return it."))) == list(nouns(function("Mean of all.", "@property"))) == []
    for text in ("Mean of all.", "Name of a class.", "Returns it.", "The mean."):
        assert list(nouns(function(text))) == [f"a.py:2: {text}"]
