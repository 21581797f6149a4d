"""One page that shows a study or several side by side: their facts as JSON, and the HTML file that draws them."""
