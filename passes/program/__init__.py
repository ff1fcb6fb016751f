"""The program that the passes read and rewrite: a Dynamo graph, and its view as ATen operators."""
