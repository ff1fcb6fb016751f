"""emit: replaces a site by a call of flex_attention, or of scaled_dot_product_attention, in the Dynamo graph."""
