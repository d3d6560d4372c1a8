"""
The models that the paper compares with and that neither Transformers nor timm has, and the names and sizes of the
others. They can be trained like any other, but are here to be compared with: there are no weights.
"""
