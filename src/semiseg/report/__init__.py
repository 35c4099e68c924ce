"""Tables and pictures made from run directories; nothing here touches a tensor or a network."""
