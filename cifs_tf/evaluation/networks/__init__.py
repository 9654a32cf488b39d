"""What is attacked: classifiers, any Keras model, SavedModels and ONNX files, reduced to images -> heads."""
