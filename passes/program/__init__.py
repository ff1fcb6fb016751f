"""The program that the passes read and write: a Dynamo graph, and the same as ATen operators."""
