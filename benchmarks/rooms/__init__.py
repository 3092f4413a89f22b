"""The networks of Rooms and what is known of them: trained, transferred, and held against every measure."""
