//! What the tests of whole clusters share: laboratories of real daemons, clients for them, and evidence taken from outside.
//!
//! Nothing here knows how shoal works inside; it starts `shoald`, calls `shoal`, looks at processes and sends HTTP requests,
//! as a user could.

pub mod browser;
pub mod capture;
pub mod evidence;
pub mod http;
pub mod lab;
pub mod load;
pub mod shoal;
pub mod sim;
pub mod terminal;
pub mod wait;
pub mod walk;
