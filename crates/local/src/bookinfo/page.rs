//! The HTML of productpage. Everything is inline: the page needs no other request.
//!
//! Invariant: whatever comes from a neighbour or a user is escaped before it enters the page.

use std::fmt::Write;

use serde_json::Value;

use super::productpage::Answer;

const CSS: &str = include_str!("page.css");
const SAIL: &str = "<svg viewBox=\"0 0 32 32\" fill=\"currentColor\" aria-hidden=\"true\">\
    <path d=\"M6 23.5 21 2.5c3.2 6.600 3.700 13.800 2.300 21z\"/>\
    <path d=\"M3 26h26c-1.600 2.500-4 4-7.200 4H10C6.800 30 4.300 28.500 3 26z\" opacity=\".7\"/></svg>";
/// A book cover drawn for this page: two pairs of look-alike masks' colours and a sail.
const COVER: &str = "<svg class=\"cover\" viewBox=\"0 0 150 210\" role=\"img\" aria-label=\"Book cover\">\
    <rect width=\"150\" height=\"210\" rx=\"6\" fill=\"#0f5c7a\"/>\
    <rect width=\"10\" height=\"210\" rx=\"4\" fill=\"#0a4359\"/>\
    <circle cx=\"112\" cy=\"46\" r=\"20\" fill=\"#f4b942\"/>\
    <path d=\"M44 140 88 58c14 26 17 55 11 82z\" fill=\"#f7f5f0\"/>\
    <path d=\"M100 140 118 96c7 14 9 29 6 44z\" fill=\"#f7f5f0\" opacity=\".75\"/>\
    <path d=\"M30 146h104c-7 13-17 19-31 19H62c-15 0-26-6-32-19z\" fill=\"#b5482f\"/>\
    <path d=\"M10 174q17-10 35 0t35 0 35 0 35 0v36H10z\" fill=\"#0a4359\"/>\
    <path d=\"M10 186q17-10 35 0t35 0 35 0 35 0\" fill=\"none\" stroke=\"#6cc3e3\" stroke-width=\"2\"/></svg>";

/// What the product page shows.
#[derive(Debug)]
pub struct Product<'a> {
    pub workload: &'a str,
    pub user: Option<&'a str>,
    pub title: &'a str,
    /// Trusted HTML: our own text.
    pub description_html: &'a str,
    pub details: &'a Answer,
    pub reviews: &'a Answer,
}

/// The product page.
pub fn productpage(product: &Product<'_>) -> String {
    let body = format!(
        "<section class=\"hero\">{COVER}<div><h1>{title}</h1><p class=\"lead\">{description}</p>\
         <div class=\"tools\"><a class=\"button\" href=\"/productpage\">Ask again</a></div>\
         </div></section>{reviews}{details}{path}",
        title = escape(product.title),
        description = product.description_html,
        reviews = reviews(product.reviews),
        details = details(product.details),
        path = path(product),
    );
    document(product.user, product.workload, &body)
}

/// The start page: where to go from here, and the HTTP API.
pub fn index(workload: &str, user: Option<&str>) -> String {
    let rows: String = [
        ("/productpage", "the page in the browser"),
        ("/api/v1/products", "every book"),
        ("/api/v1/products/0", "the details of one book"),
        ("/api/v1/products/0/reviews", "its reviews"),
        ("/api/v1/products/0/ratings", "its ratings"),
        ("/health", "whether this application is healthy"),
    ]
    .iter()
    .map(|(path, what)| {
        format!("<tr><td><a href=\"{path}\"><code>{path}</code></a></td><td>{what}</td></tr>")
    })
    .collect();
    let body = format!(
        "<section class=\"hero\">{COVER}<div><h1>A bookstore of four services</h1>\
         <p class=\"lead\">productpage asks details and reviews; two of the three versions of \
         reviews ask ratings. Every call goes through the mesh.</p>\
         <div class=\"tools\"><a class=\"button\" href=\"/productpage\">Open the product page</a>\
         </div></div></section>\
         <section class=\"card\"><h2>What it answers</h2><table>{rows}</table></section>"
    );
    document(user, workload, &body)
}

fn document(user: Option<&str>, workload: &str, body: &str) -> String {
    let session = match user {
        Some(user) => format!(
            "<div class=\"user\"><span class=\"who\" aria-hidden=\"true\">{initial}</span>\
             <span class=\"name\">{user}</span>\
             <a class=\"button plain\" href=\"/logout\">Sign out</a></div>",
            initial = escape(&user.chars().take(1).collect::<String>()),
            user = escape(user),
        ),
        None => "<details class=\"signin\"><summary>Sign in</summary>\
             <form method=\"post\" action=\"/login\">\
             <label>User name<input name=\"username\" required maxlength=\"64\" \
             autocomplete=\"username\" placeholder=\"jason\"></label>\
             <label>Password<input name=\"passwd\" type=\"password\" \
             autocomplete=\"current-password\"></label>\
             <button>Sign in</button>\
             <p class=\"hint\">Any name and any password will do. Routing rules see the name in \
             the header <code>end-user</code>.</p></form></details>"
            .to_owned(),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Simple Bookstore App</title>\n<style>\n{CSS}</style></head>\n<body>\
         <header><a class=\"brand\" href=\"/\">{SAIL}<span>Bookinfo</span></a>{session}</header>\n\
         <main>{body}</main>\n\
         <footer>Served by <code>{workload}</code> through its sidecar. \
         Bookinfo has the HTTP API of Istio's sample of that name; code and texts are \
         Lateen's.</footer></body></html>\n",
        workload = escape(workload),
    )
}

fn reviews(answer: &Answer) -> String {
    let Some(reviews) = answer.body["reviews"].as_array() else {
        return failed("reviews", &answer.body);
    };
    let figures: String = reviews.iter().map(review).collect();
    let by = answer.body["podname"].as_str().unwrap_or("unknown");
    format!(
        "<section class=\"card\"><div class=\"title\"><h2>Book Reviews</h2>\
         <span class=\"by\">Reviews served by: {by}</span></div>\
         <div class=\"reviews\">{figures}</div></section>",
        by = escape(by),
    )
}

fn review(review: &Value) -> String {
    let rating = &review["rating"];
    let stars = match (rating["stars"].as_i64(), rating["error"].as_str()) {
        (Some(stars), _) => star_row(stars, rating["color"].as_str().unwrap_or("black")),
        (None, Some(error)) => format!("<p class=\"oops\">{}</p>", escape(error)),
        (None, None) => String::new(),
    };
    format!(
        "<figure>{stars}<blockquote>{text}</blockquote><figcaption>{reviewer}</figcaption></figure>",
        text = escape(review["text"].as_str().unwrap_or_default()),
        reviewer = escape(review["reviewer"].as_str().unwrap_or_default()),
    )
}

fn star_row(stars: i64, color: &str) -> String {
    let stars = usize::try_from(stars.clamp(0, 5)).unwrap_or_default();
    format!(
        "<span class=\"stars {color}\" role=\"img\" aria-label=\"{stars} of 5 {color} stars\">{}\
         <i>{}</i></span>",
        "★".repeat(stars),
        "★".repeat(5 - stars),
        color = escape(color),
    )
}

fn details(answer: &Answer) -> String {
    if answer.body.get("error").is_some() || !answer.body.is_object() {
        return failed("details", &answer.body);
    }
    const ROWS: [(&str, &str); 8] = [
        ("Author", "author"),
        ("Year", "year"),
        ("Type", "type"),
        ("Pages", "pages"),
        ("Publisher", "publisher"),
        ("Language", "language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    ];
    let mut rows = String::new();
    for (label, key) in ROWS {
        let value = match &answer.body[key] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let _ = write!(
            rows,
            "<div><dt>{label}</dt><dd>{}</dd></div>",
            escape(&value)
        );
    }
    let by = match &answer.workload {
        Some(workload) => format!("<span class=\"by\">{}</span>", escape(workload)),
        None => String::new(),
    };
    format!(
        "<section class=\"card\"><div class=\"title\"><h2>Book Details</h2>{by}</div>\
         <dl>{rows}</dl></section>"
    )
}

/// A part of the page that could not be had: the sample's heading and its words.
fn failed(what: &str, body: &Value) -> String {
    let error = body["error"]
        .as_str()
        .unwrap_or("The answer was not understood.");
    format!(
        "<section class=\"card error\"><h2>Error fetching product {what}</h2><p>{}</p></section>",
        escape(error),
    )
}

/// Which workloads took part in making this page.
fn path(product: &Product<'_>) -> String {
    let mut hops = vec![("", product.workload.to_owned())];
    if let Some(details) = &product.details.workload {
        hops.push(("→", details.clone()));
    }
    if let Some(reviews) = product.reviews.body["podname"].as_str() {
        hops.push(("→", reviews.to_owned()));
        if product.reviews.body["reviews"][0]["rating"].is_object() {
            hops.push(("→", "ratings".to_owned()));
        }
    }
    let items: String = hops
        .iter()
        .enumerate()
        .map(|(index, (arrow, hop))| {
            // details and reviews are both asked by productpage; only ratings is one step further.
            let arrow = match (index, arrow) {
                (0, _) => String::new(),
                (2, _) => "<span class=\"arrow\">and</span>".to_owned(),
                (_, arrow) => format!("<span class=\"arrow\">{arrow}</span>"),
            };
            format!("<li>{arrow}<span class=\"by\">{}</span></li>", escape(hop))
        })
        .collect();
    format!(
        "<section class=\"card\"><h2>Who made this page</h2><ul class=\"path\">{items}</ul></section>"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
