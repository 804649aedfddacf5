// Notes in an encrypted SQLite database, from Java with sqlite-jdbc (Debian: libxerial-sqlite-jdbc-java; Maven: org.xerial:sqlite-jdbc).
//
//   tde hsm init --store hsm --pin-file pin            # a software HSM, once
//   export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring
//
//   java -cp /usr/share/java/sqlite-jdbc.jar Notes.java /usr/local/lib/libtde_sqlite notes.db "water the plants"

import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import org.sqlite.SQLiteConfig;

public class Notes {
    /** Loads the VFS. It stays for all connections of the process. */
    static void load(String extension) throws SQLException {
        SQLiteConfig config = new SQLiteConfig();
        config.enableLoadExtension(true);
        try (Connection loader = DriverManager.getConnection("jdbc:sqlite::memory:", config.toProperties());
                var statement = loader.prepareStatement("SELECT load_extension(?)")) {
            statement.setString(1, extension);
            statement.execute();
        }
    }

    public static void main(String[] args) throws SQLException {
        load(args[0]);
        String url = "jdbc:sqlite:file:" + Path.of(args[1]).toAbsolutePath().toUri().getRawPath() + "?vfs=tde";
        try (Connection db = DriverManager.getConnection(url); var statement = db.createStatement()) {
            statement.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)");
            try (var insert = db.prepareStatement("INSERT INTO note (text) VALUES (?)")) {
                insert.setString(1, args[2]);
                insert.execute();
            }
            ResultSet notes = statement.executeQuery("SELECT id, text FROM note ORDER BY id");
            while (notes.next()) {
                System.out.println(notes.getInt(1) + ": " + notes.getString(2));
            }
        }
    }
}
