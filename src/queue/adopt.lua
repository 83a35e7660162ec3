-- adopt(limit) -> n: what the aca-deliver prototype left on its own retry schedule (the last key) goes to the right of K.
local limit, legacy = assert(tonumber(ARGV[1])), KEYS[14]
check_types()
local values = redis.call('ZRANGE', legacy, 0, limit - 1)
if #values == 0 then return 0 end
open_for_writing()
all('RPUSH', K, values)
all('ZREM', legacy, values)
return #values
